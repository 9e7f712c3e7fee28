//! What no kernel may contain.

/// Sums by floating-point atomics depend on who comes first. Tickets are integers.
#[test]
fn no_floating_point_atomics() {
    let mut integers = 0;
    for entry in std::fs::read_dir("kernels").unwrap() {
        let path = entry.unwrap().path();
        let source = std::fs::read_to_string(&path).unwrap();
        let code = source.lines().map(|line| line.split("//").next().unwrap_or("")).enumerate();
        for (number, line) in code {
            let place = format!("{}:{}: {}", path.display(), number + 1, line.trim());
            let packed = line.replace(' ', "");
            for ptx in ["red.", "atom."] {
                let floats = [".f16", ".bf16", ".f32", ".f64"].iter().any(|float| packed.contains(float));
                assert!(!(packed.contains(&format!("\"{ptx}")) && floats), "{place}");
            }
            if packed.contains("atomicAdd(") {
                let integer = ["1u)", "static_cast<unsigned>(", "static_cast<unsignedlonglong>("];
                assert!(integer.iter().any(|operand| packed.contains(operand)), "{place}");
                integers += 1;
            }
        }
    }
    assert!(integers > 0, "the search finds nothing, not even tickets");
}
