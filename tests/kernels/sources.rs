//! What no kernel may contain.

/// Every atomic operation there is. Their targets are integers (counters of pad_convert, histogram and size of the top-k
/// search, tickets): sums by floating-point atomics would depend on who comes first. A new one has to be added here.
const INTEGER_ATOMICS: [&str; 5] = [
    "if (rounded != 0) atomicAdd(&changed[0], static_cast<unsigned long long>(rounded));",
    "if (infinite != 0) atomicAdd(&changed[1], static_cast<unsigned long long>(infinite));",
    "atomicAdd(&selection.histogram[static_cast<unsigned>(keys[i] >> shift) & 255u], 1u);",
    "selection.unsorted[atomicAdd(&selection.size, 1u)] = keys[i];",
    "asm volatile(\"atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;\"",
];

#[test]
fn no_floating_point_atomics() {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("kernels").unwrap() {
        let path = entry.unwrap().path();
        let source = std::fs::read_to_string(&path).unwrap();
        for (number, line) in source.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("").trim();
            // CUDA's functions, libcu++'s types, and the instructions in inline assembly.
            let red = code.match_indices("red.").any(|(at, _)| !code[..at].ends_with(char::is_alphanumeric));
            let atomic = code.to_lowercase().contains("atomic") || code.contains("atom.") || red;
            if atomic {
                let known = INTEGER_ATOMICS.iter().position(|known| code.ends_with(known));
                found.push(known.unwrap_or_else(|| panic!("{}:{}: {code}", path.display(), number + 1)));
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    assert_eq!(found, [0, 1, 2, 3, 4], "an operation that is listed is not there");
}
