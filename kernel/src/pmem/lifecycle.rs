//! Detaching a namespace at run time, and attaching it again.
//!
//! Detaching is what Linux calls disabling. Nobody may have the namespace (a
//! mounted file system, a check), every folio of it must be at rest, pinned
//! ones included (I6), and then its pgmap is killed and released and its memory
//! leaves the direct map. A detach that fails leaves everything as it was and
//! says who is in the way.
//!
//! A detached namespace is remembered with its region, so that it can come
//! back under its name.
//!
//! Lock order: the list of the detached, then that of the attached.

use super::namespace::{ALL, Namespace, find};
use crate::error::{Error, Result};
use crate::memmap::{self, Pgmap};
use crate::sync::SpinLock;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

static DETACHED: SpinLock<Vec<Arc<Namespace>>> = SpinLock::new(Vec::new());

/// Takes a namespace away. Fails when somebody has it, or when not all of its
/// folios have come to rest by `deadline_ns`; it stays attached then.
pub fn detach(name: &str, deadline_ns: u64) -> Result<()> {
    if DETACHED.lock().iter().any(|other| other.name() == name) {
        return Err(Error::busy(format!("{name} is detached already")));
    }
    let namespace = find(name)?;
    let list = || DETACHED.lock().push(namespace.clone());
    take_away(&namespace, deadline_ns, list)?;
    log::info!("pmem: detached {name}");
    Ok(())
}

/// Takes a namespace away for good: it will be made anew, or not at all.
pub(super) fn remove(namespace: &Arc<Namespace>) -> Result<()> {
    let deadline = crate::sched::now_ns().saturating_add(REMOVE_NS);
    take_away(namespace, deadline, || {})
}

/// How long folios may take to come to rest when a namespace is removed.
const REMOVE_NS: u64 = 1_000_000_000;

fn take_away(namespace: &Arc<Namespace>, deadline_ns: u64, keep: impl FnOnce()) -> Result<()> {
    // From here on nobody can start to use it: every use begins with a claim.
    namespace.seize("detached")?;
    let map = namespace.pgmap();
    if !map.quiesce(deadline_ns) {
        let who = in_the_way(map);
        namespace.let_go();
        return Err(Error::busy(format!("{}: {who}", namespace.name())));
    }
    map.kill();
    // Nothing rises from 0 any more, and nobody had anything: a reference
    // taken and dropped since is all that this can wait for.
    map.drain(None);
    namespace.unmap()?;
    map.release()?;
    map.trim();
    keep();
    ALL.lock().retain(|other| !Arc::ptr_eq(other, namespace));
    Ok(())
}

/// Brings a detached namespace back.
pub fn attach(name: &str) -> Result<Arc<Namespace>> {
    let mut detached = DETACHED.lock();
    let Some(at) = detached.iter().position(|other| other.name() == name) else {
        drop(detached);
        return match find(name) {
            Ok(_) => Err(Error::Exists {
                what: format!("{name} is attached already").into(),
            }),
            Err(error) => Err(error),
        };
    };
    let new = detached[at].again()?;
    detached.remove(at);
    new.list();
    drop(detached);
    log::info!("pmem: attached {name}");
    Ok(new)
}

/// Namespaces that have been detached.
pub fn detached() -> Vec<Arc<Namespace>> {
    DETACHED.lock().clone()
}

/// Forgets detached namespaces: they can't come back.
pub(super) fn forget(which: impl Fn(&Namespace) -> bool) {
    DETACHED.lock().retain(|namespace| !which(namespace));
}

/// Who keeps a pgmap's folios from rest, for messages.
fn in_the_way(map: &Pgmap) -> String {
    let mut pins: BTreeMap<String, u64> = BTreeMap::new();
    for pin in memmap::pins() {
        if map.pages().contains(&pin.id.page) {
            *pins.entry(pin.owner).or_default() += u64::from(pin.count);
        }
    }
    if pins.is_empty() {
        return format!("{} folios are mapped", map.busy_folios());
    }
    let names: Vec<String> = pins
        .into_iter()
        .map(|(name, count)| format!("{name} \u{d7}{count}"))
        .collect();
    format!("pinned by {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::namespace::attach as attach_region;
    use super::*;
    use crate::memmap::{FolioId, OwnerId, PinOwner, Term};
    use crate::pmem::fixture::{HostMemory, host_region};
    use quire_arch::PageSize;
    use quire_fs::Pmem;

    fn namespace(number: usize) -> Arc<Namespace> {
        let memory = Arc::new(HostMemory::new(1 << 20, 1 << 21));
        let region = host_region(memory.phys().as_u64(), 1 << 20);
        attach_region(number, region, memory, &|_| false).unwrap()
    }

    #[test]
    fn detaching_waits_for_pins_and_says_whose() {
        let namespace = namespace(105);
        let map = namespace.pgmap().clone();
        let id = FolioId::containing(namespace.phys(), PageSize::Size4K);
        let file = OwnerId(core::num::NonZeroU32::MIN);
        map.associate(id, file, 0).unwrap();
        map.map_leaves(id, 1).unwrap();
        let owner = PinOwner::new("rdma");
        let pin = owner
            .pin(&map, id.page, 1, Term::Short, false)
            .map_err(Error::from)
            .unwrap();
        map.unmap_leaves(id, 1);
        map.put(id, 1);
        let error = detach("pmem105", 0).unwrap_err();
        assert!(error.to_string().contains("rdma \u{d7}1"), "{error}");
        // All is as it was: it can be claimed, and the pin is good.
        assert!(map.is_alive());
        drop(find("pmem105").unwrap().claim("test", true).unwrap());
        assert_eq!(map.counts(id).refs, 1);
        let detacher = std::thread::spawn(|| detach("pmem105", u64::MAX));
        while namespace.user().is_none() {
            std::thread::yield_now();
        }
        drop(pin);
        detacher.join().unwrap().unwrap();
        assert!(find("pmem105").is_err());
        assert!(memmap::of_frame(id.page).is_none());
    }

    #[test]
    fn a_detached_namespace_comes_back_with_its_content() {
        let namespace = namespace(117);
        let claim = namespace.claim("test", true).unwrap();
        claim.pmem().write(100, b"kept").unwrap();
        let error = detach("pmem117", 0).unwrap_err();
        assert!(error.to_string().contains("test"), "{error}");
        drop(claim);
        detach("pmem117", 0).unwrap();
        assert!(detached().iter().any(|n| n.name() == "pmem117"));
        assert!(detach("pmem117", 0).is_err(), "detached twice");
        assert!(
            namespace.claim("late", false).is_err(),
            "who found it before can still claim it"
        );
        let again = attach("pmem117").unwrap();
        assert!(attach("pmem117").is_err(), "attached twice");
        assert!(attach("pmem99999").is_err());
        assert!(!detached().iter().any(|n| n.name() == "pmem117"));
        assert!(Arc::ptr_eq(&find("pmem117").unwrap(), &again));
        let mut buf = [0; 4];
        let claim = again.claim("test", false).unwrap();
        claim.pmem().read(100, &mut buf).unwrap();
        assert_eq!(&buf, b"kept");
        assert!(again.pgmap().is_alive());
    }
}
