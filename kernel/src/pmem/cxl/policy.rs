//! What the kernel's command line says of regions: the word `cxl=`.
//!
//! | word | meaning |
//! |---|---|
//! | none | regions are those that firmware committed and those that labels know |
//! | `cxl=create` | besides, each device that is in no region and has no label becomes a region of its own |
//! | `cxl=create:1+2,3` | besides, the devices with the serial numbers 1 and 2 become one region, in this order where it can be decoded, and that with 3 another |
//!
//! Nothing is written to any device for it: neither data nor labels.

use super::label;
use super::memdev::MemdevId;
use super::plan::{Plan, Request};
use super::region::Origin;
use super::topology::Topology;
use crate::error::{Error, Result};
use alloc::format;
use alloc::vec::Vec;

/// Does what the word says.
pub fn apply(topology: &mut Topology, word: &str) {
    let sets = match parse(topology, word) {
        Ok(sets) => sets,
        Err(error) => {
            log::error!("cxl: cxl={word}: {error}");
            return;
        }
    };
    // What stands from firmware or labels is what the user has.
    let taken = |topology: &Topology, members: &[MemdevId]| {
        let mut known = topology.regions.iter().flat_map(|region| &region.members);
        known.any(|(id, _)| members.contains(id))
    };
    let mut wanted: Vec<Request> = sets
        .into_iter()
        .filter(|members| !taken(topology, members))
        .map(|members| Request {
            members,
            ..Request::default()
        })
        .collect();
    // Bridges take decoders in order of addresses: the lowest window first.
    while !wanted.is_empty() {
        let mut best: Option<(usize, Plan)> = None;
        let mut failed = Vec::new();
        for (nth, request) in wanted.iter().enumerate() {
            match label::check_free(topology, &request.members)
                .and_then(|()| Plan::new(topology, request))
            {
                Ok(plan)
                    if best
                        .as_ref()
                        .is_none_or(|(_, known)| plan.base < known.base) =>
                {
                    best = Some((nth, plan));
                }
                Ok(_) => {}
                Err(error) => failed.push((nth, error)),
            }
        }
        let (nth, outcome) = match (best, failed.pop()) {
            (Some((nth, plan)), _) => {
                let made = topology.create(&plan, Origin::CommandLine, None);
                (nth, made.map(drop))
            }
            (None, Some((nth, error))) => (nth, Err(error)),
            (None, None) => return,
        };
        let request = wanted.remove(nth);
        if let Err(error) = outcome {
            let names = request.members.iter().map(|id| format!("mem{}", id.0));
            let names: Vec<_> = names.collect();
            log::error!("cxl: cxl={word}: {}: {error}", names.join("+"));
        }
    }
}

/// The sets that a word asks for.
fn parse(topology: &Topology, word: &str) -> Result<Vec<Vec<MemdevId>>> {
    let Some(rest) = word.strip_prefix("create") else {
        return Err(Error::invalid("it is cxl=create[:SERIAL+SERIAL,…]"));
    };
    if rest.is_empty() {
        let all = topology.memdevs.iter().enumerate();
        return Ok(all
            .filter(|(_, memdev)| !memdev.persistent().is_empty())
            .map(|(nth, _)| [MemdevId(nth)].to_vec())
            .collect());
    }
    let sets = rest
        .strip_prefix(':')
        .ok_or_else(|| Error::invalid("it is cxl=create[:SERIAL+SERIAL,…]"))?;
    sets.split(',')
        .map(|set| {
            set.split('+')
                .map(|serial| find(topology, serial))
                .collect()
        })
        .collect()
}

fn find(topology: &Topology, text: &str) -> Result<MemdevId> {
    let number = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    let serial = number.map_err(|_| Error::invalid(format!("{text} is no serial number")))?;
    topology
        .memdevs
        .iter()
        .position(|memdev| memdev.serial == serial)
        .map(MemdevId)
        .ok_or_else(|| Error::not_found(format!("a memory device with serial number {serial}")))
}
