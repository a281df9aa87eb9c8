//! The files of collector/.

use std::process::Stdio;

use super::otelcol;

#[test]
fn every_configuration_is_valid() {
    let overlays: [&[&str]; 4] =
        [&[], &["span-metrics.yaml"], &["sampling.yaml"], &["span-metrics.yaml", "sampling.yaml"]];
    for overlays in overlays {
        let output = otelcol(overlays).arg("validate").stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{overlays:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
