//! `pmem doctor`: what is the matter, why, and what to do. `pmem scrub`: what
//! firmware finds to be lost.

use quire::app::pmem::{self, Verdict};

use quire::error::Error;

use crate::env::{Context, Failure, Outcome, What};
use crate::json;
use crate::out;

/// Everything that was found out; status 4 when something is broken.
pub(super) fn doctor(ctx: &mut Context) -> Outcome {
    let findings = pmem::examine();
    let worst = findings.iter().map(|finding| finding.verdict).max();
    if ctx.args.json() {
        let text = json::array(|j| {
            for finding in &findings {
                super::machine::describe(j, "", &finding.describe());
            }
        });
        ctx.print(text.as_bytes());
    } else {
        for finding in &findings {
            out!(
                ctx,
                "{:<10} {:<9} {}: {}\n",
                finding.subject,
                finding.verdict.name(),
                finding.question,
                finding.answer
            );
            for (source, value) in &finding.evidence {
                out!(ctx, "{:<20} {source}: {value}\n", "");
            }
            if !finding.next.is_empty() {
                out!(ctx, "{:<20} next: {}\n", "", finding.next);
            }
        }
    }
    match worst {
        Some(Verdict::Broken) => Err(Failure::Status(4)),
        _ => Ok(()),
    }
}

/// Lets firmware look for lost memory; status 4 when there is some.
pub(super) fn scrub(ctx: &mut Context, wanted: Option<&str>) -> Outcome {
    let regions = &pmem::inventory().regions;
    if let Some(name) = wanted
        && !regions.iter().any(|region| region.dev == name)
    {
        return Err(Error::not_found(alloc::format!("region {name}"))).what(name);
    }
    let mut lost = false;
    for region in regions {
        if wanted.is_some_and(|name| name != region.dev) {
            continue;
        }
        let dev = &region.dev;
        match pmem::scrub(region).what(dev)? {
            None => out!(ctx, "{dev}: firmware has no address range scrub\n"),
            Some(bad) if bad.is_empty() => out!(ctx, "{dev}: nothing is lost\n"),
            Some(bad) => {
                lost = true;
                for range in bad {
                    let (start, end) = (range.start, range.end);
                    out!(ctx, "{dev}: lost {start:#x}..{end:#x}\n");
                }
            }
        }
    }
    match lost {
        true => Err(Failure::Status(4)),
        false => Ok(()),
    }
}
