//! Random operation lists over a handful of layouts, shrunk when one fails.

mod common;

use common::model::Model;
use common::{Rng, assert_same, fsck, image_tree, mkfs, mount_rw};
use proptest::prelude::*;

const LAYOUTS: &[&[&str]] = &[
    &[],
    &["-b", "1024"],
    &["-b", "1024", "-O", "^extents,^64bit"],
    &["-b", "2048", "-O", "^metadata_csum,^uninit_bg,^has_journal"],
    &["-b", "1024", "-I", "128", "-O", "^flex_bg,^has_journal"],
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn histories(layout in 0..LAYOUTS.len(), seed: u64, steps in 1_usize..250, name_len in 1_u64..250) {
        let tmp = tempfile::tempdir().unwrap();
        let image = mkfs(tmp.path(), "image", "12M", LAYOUTS[layout], None);
        let mut model = Model::new();
        model.name_len = name_len;
        let mut rng = Rng::new(seed);
        let mut fs = mount_rw(&image);
        for _ in 0..steps {
            model.step(&mut fs, &mut rng);
        }
        assert_same(&image_tree(&fs), &model.tree());
        fs.unmount().unwrap();
        fsck(&image);
    }
}
