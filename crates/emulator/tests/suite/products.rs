//! Products of a warpgroup (wgmma) as text: every layout of matrices in shared memory, as PTX ISA 9.7.15.5 draws them, against
//! plain indexing; and what must not go unnoticed.

use std::fmt::Write as _;

use cudarc::driver::sys::CUresult;
use ggro_emulator::{Config, Copies, Schedule};

use crate::harness::{Bench, bf16, shape};

/// Of the sum: two instructions.
const INNER: usize = 32;

/// How a matrix of `lines` rows (of a) or columns (of b) lies in shared memory.
#[derive(Clone, Copy, Debug)]
struct Layout {
    lines: usize,
    /// Of the swizzle in bytes; 0 without.
    width: usize,
    /// Lines run fastest, not the sum.
    across: bool,
}

impl Layout {
    /// Byte of an element: eight lie together in a chunk of 16 bytes; of swizzled lines the chunks are exchanged.
    fn byte(self, line: usize, k: usize) -> usize {
        let Layout { lines, width, across } = self;
        let exchanged = |chunk: usize, row: usize| match width {
            32 => chunk ^ (row / 4 % 2),
            64 => chunk ^ (row / 2 % 4),
            _ => chunk ^ (row % 8),
        };
        match (width, across) {
            (0, false) => (k / 8 * (lines / 8) + line / 8) * 128 + line % 8 * 16 + k % 8 * 2,
            (0, true) => (k / 8 * (lines / 8) + line / 8) * 128 + k % 8 * 16 + line % 8 * 2,
            (_, false) => {
                let (block, k) = (k / (width / 2), k % (width / 2));
                (block * lines + line) * width + exchanged(k / 8, line) * 16 + k % 8 * 2
            }
            (_, true) => {
                let (block, line) = (line / (width / 2), line % (width / 2));
                (block * INNER + k) * width + exchanged(line / 8, k) * 16 + line % 8 * 2
            }
        }
    }

    /// Leading and stride offset, and the way from one instruction's part to the next.
    fn offsets(self) -> (usize, usize, usize) {
        let Layout { lines, width, across } = self;
        match (width, across) {
            (0, _) => (lines / 8 * 128, 128, 2 * lines / 8 * 128),
            (32, false) => (16, 256, lines * 32),
            (_, false) => (16, 8 * width, 32),
            (_, true) => (INNER * width, 8 * width, 16 * width),
        }
    }

    fn bytes(self) -> usize {
        self.lines * INNER.max(self.width / 2) * 2
    }

    fn descriptor(self) -> u64 {
        let (leading, stride, _) = self.offsets();
        let mode = match self.width {
            0 => 0u64,
            128 => 1,
            64 => 2,
            _ => 3,
        };
        mode << 62 | (stride as u64 / 16) << 32 | (leading as u64 / 16) << 16
    }
}

/// What a kernel of 128 threads does, line by line, with the matrices in `s` from 0 and from `B`.
struct Text {
    a: Option<Layout>,
    b: Layout,
    kind: &'static str,
    /// Between the stores to shared memory and the products.
    before: &'static str,
    /// Between the products and the stores of the sums.
    after: &'static str,
    /// Whether a product adds to its sums is in a predicate register, or a number.
    scale: Scale,
}

#[derive(Clone, Copy, PartialEq)]
enum Scale {
    Number,
    Predicate,
}

const FENCED: &str = "fence.proxy.async.shared::cta;\nbar.sync 0;\nwgmma.fence.sync.aligned;";
const WAITED: &str = "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;";

impl Text {
    fn b_at(&self) -> usize {
        self.a.map_or(0, |a| a.bytes().next_multiple_of(1024))
    }

    fn bytes(&self) -> usize {
        self.b_at() + self.b.bytes()
    }

    fn kernel(&self) -> String {
        let sums = self.b.lines / 2;
        let registers = |stem: &str, n: usize| (0..n).map(|i| format!("{stem}{i}")).collect::<Vec<_>>().join(", ");
        let mut text = format!(
            ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry t(.param .u64 out, .param .u64 in, .param .u64 fragments) {{\n\
             .reg .b64 %rd<8>;\n.reg .b32 %r<8>;\n.reg .f32 %f<{sums}>;\n.reg .b32 %a<8>;\n.reg .pred q, adds;\n\
             .shared .align 1024 .b8 s[{}];\nmov.u32 %r0, %tid.x;\nld.param.u64 %rd0, [in];\nmov.u32 %r1, s;\nmov.u32 %r2, %r0;\n\
             next:\nsetp.ge.u32 q, %r2, {};\n@q bra stored;\nmul.wide.u32 %rd1, %r2, 4;\nadd.s64 %rd1, %rd0, %rd1;\n\
             ld.global.u32 %r3, [%rd1];\nshl.b32 %r4, %r2, 2;\nadd.s32 %r4, %r1, %r4;\nst.shared.u32 [%r4], %r3;\n\
             add.s32 %r2, %r2, 128;\nbra next;\nstored:\n",
            self.bytes(),
            self.bytes() / 4,
        );
        text += "ld.param.u64 %rd0, [fragments];\nmul.wide.u32 %rd1, %r0, 32;\nadd.s64 %rd0, %rd0, %rd1;\n";
        for i in 0..8 {
            let _ = writeln!(text, "ld.global.u32 %a{i}, [%rd0+{}];", 4 * i);
        }
        for i in 0..sums {
            let _ = writeln!(text, "mov.f32 %f{i}, 0f42c80000;");
        }
        let _ = writeln!(text, "{}", self.before);
        for step in 0..2 {
            let mut descriptor = |register: &str, at: usize, layout: Layout| {
                let at = at + step * layout.offsets().2;
                let _ = writeln!(
                    text,
                    "add.s32 %r5, %r1, {at};\nand.b32 %r5, %r5, 0x3ffff;\nshr.u32 %r5, %r5, 4;\ncvt.u64.u32 {register}, %r5;\n\
                     or.b64 {register}, {register}, {};",
                    layout.descriptor()
                );
            };
            descriptor("%rd3", self.b_at(), self.b);
            let (a, across) = match self.a {
                Some(a) => {
                    descriptor("%rd2", 0, a);
                    ("%rd2".to_owned(), format!("{}, ", u8::from(a.across)))
                }
                None => (
                    format!("{{%a{}, %a{}, %a{}, %a{}}}", 4 * step, 4 * step + 1, 4 * step + 2, 4 * step + 3),
                    String::new(),
                ),
            };
            // The first one does not add to what the registers hold.
            let scale = if self.scale == Scale::Number { step.to_string() } else { "adds".to_owned() };
            let _ = writeln!(
                text,
                "setp.ne.b32 adds, {step}, 0;\n\
                 wgmma.mma_async.sync.aligned.m64n{}k16.f32.{kind}.{kind} {{{}}}, {a}, %rd3, {scale}, 1, 1, {across}{};",
                self.b.lines,
                registers("%f", sums),
                u8::from(self.b.across),
                kind = self.kind,
            );
        }
        let _ = writeln!(text, "{}", self.after);
        let _ = writeln!(
            text,
            "ld.param.u64 %rd0, [out];\nmul.wide.u32 %rd1, %r0, {};\nadd.s64 %rd0, %rd0, %rd1;",
            4 * sums
        );
        for i in 0..sums {
            let _ = writeln!(text, "st.global.f32 [%rd0+{}], %f{i};", 4 * i);
        }
        text + "ret;\n}\n"
    }
}

/// Small integers, whose products and sums are exact in every type.
fn value(line: usize, k: usize, seed: usize) -> f32 {
    ((line * 7 + k * 5 + line * k * 3 + seed) % 9) as f32 - 4.0
}

fn bits(x: f32, kind: &str) -> u16 {
    if kind == "bf16" {
        return bf16(x);
    }
    let magnitude = [0u16, 0x3c00, 0x4000, 0x4200, 0x4400][x.abs() as usize];
    magnitude | if x < 0.0 { 0x8000 } else { 0 }
}

/// The sums by thread, and a device to look at.
fn run(b: &Bench, text: &Text, threads: u32) -> Vec<f32> {
    let mut shared = vec![0u16; text.bytes() / 2];
    let mut place = |at: usize, layout: Layout, seed: usize| {
        for line in 0..layout.lines {
            for k in 0..INNER {
                shared[(at + layout.byte(line, k)) / 2] = bits(value(line, k, seed), text.kind);
            }
        }
    };
    if let Some(a) = text.a {
        place(0, a, 1);
    }
    place(text.b_at(), text.b, 2);
    // Registers of a: rows g and g + 8, then the same 8 further along the sum.
    let mut fragments = Vec::new();
    for thread in 0..128 {
        let (row, k) = (thread / 32 * 16 + thread % 32 / 4, thread % 4 * 2);
        for register in 0..8 {
            let (row, k) = (row + register % 2 * 8, k + register / 2 % 2 * 8 + register / 4 * 16);
            fragments.extend([bits(value(row, k, 1), text.kind), bits(value(row, k + 1, 1), text.kind)]);
        }
    }
    let (input, parts) = (b.up(&shared), b.up(&fragments));
    let out = b.zeros::<f32>(128 * text.b.lines / 2);
    b.launch("t", shape(1, threads), &[b.pointer(&out), b.pointer(&input), b.pointer(&parts)]).unwrap();
    b.stream.clone_dtoh(&out).unwrap_or_default()
}

fn bench(config: Config, text: &Text) -> Bench {
    Bench::with_image(config, format!("{}\0", text.kernel()).as_bytes())
}

fn check(b: &Bench, text: &Text) {
    let got = run(b, text, 128);
    b.assert_clean();
    let columns = text.b.lines;
    for thread in 0..128 {
        for i in 0..columns / 2 {
            let row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
            let column = i / 4 * 8 + thread % 4 * 2 + i % 2;
            let exact: f32 = (0..INNER).map(|k| value(row, k, 1) * value(column, k, 2)).sum();
            let x = got[thread * columns / 2 + i];
            assert_eq!(x, exact, "row {row} column {column}, {:?} {:?} {}", text.a, text.b, text.kind);
        }
    }
}

/// With the layouts of the project's kernels: lines of 128 bytes.
fn swizzled(columns: usize, kind: &'static str, across: bool) -> Text {
    Text {
        a: Some(Layout { lines: 64, width: 128, across }),
        b: Layout { lines: columns, width: 128, across: false },
        kind,
        before: FENCED,
        after: WAITED,
        scale: Scale::Predicate,
    }
}

#[test]
fn every_number_of_columns() {
    for columns in (8..=256).step_by(8) {
        for (i, kind) in ["bf16", "f16"].into_iter().enumerate() {
            for across in [false, true] {
                // Modes take turns; every one meets every kind and layout.
                let (turn, across_b) = (columns / 8 + i, columns % 64 == 0 && i == 1);
                let mut text = swizzled(columns, kind, across);
                text.b.across = across_b;
                let copies = if turn % 2 == 0 { Copies::Late } else { Copies::Early };
                let b = bench(Config { checked: turn % 8 == 0, copies, ..Config::default() }, &text);
                b.device.configure(["mma=exact", "mma=8", "mma=16"][turn % 3]);
                check(&b, &text);
            }
        }
    }
}

#[test]
fn every_layout() {
    let all = [0, 32, 64, 128].into_iter().flat_map(|width| [false, true].map(|across| (width, across)));
    for (i, (width, across)) in all.enumerate() {
        for (j, lines) in [64, 128, 256].into_iter().enumerate() {
            // Another layout for a each time.
            let a = Layout { lines: 64, width: [0, 128, 64, 32][(i + j) % 4], across: (i + j) % 3 == 0 };
            let text = Text {
                a: (j != 1).then_some(a),
                b: Layout { lines, width, across },
                kind: ["bf16", "f16"][(i + j) % 2],
                before: FENCED,
                after: WAITED,
                scale: Scale::Number,
            };
            for copies in [Copies::Late, Copies::Early] {
                let schedule = if j == 0 { Schedule::Shuffle(3) } else { Schedule::Forward };
                let b = bench(Config { checked: j == 0, copies, schedule, ..Config::default() }, &text);
                check(&b, &text);
                assert_eq!(b.device.report().kernels["t"].matrix_flops, (2 * 64 * lines * INNER) as u64);
            }
        }
    }
    // The fewest columns, and sums as tensor cores make them.
    let few = swizzled(8, "bf16", false);
    let b = bench(Config::default(), &few);
    for sums in ["mma=exact", "mma=16", "lanes=apart"] {
        b.device.configure(sums);
        check(&b, &few);
    }
}

#[test]
fn mistakes() {
    let text = |before, after| Text { before, after, ..swizzled(64, "bf16", false) };
    let faults_of = |text: &Text, copies, threads| {
        let b = bench(Config { checked: true, copies, ..Config::default() }, text);
        run(&b, text, threads);
        let faults = b.device.faults();
        assert!(b.error() == Some(CUresult::CUDA_ERROR_LAUNCH_FAILED) && faults[0].at == "ptx:0", "{faults:?}");
        b.device.reset();
        faults
    };
    let kind = |text: &Text, copies, threads| {
        let first = faults_of(text, copies, threads).remove(0);
        (first.kind, first.message)
    };
    for copies in [Copies::Late, Copies::Early] {
        let no_proxy_fence = text("bar.sync 0;\nwgmma.fence.sync.aligned;", WAITED);
        let (found, message) = kind(&no_proxy_fence, copies, 128);
        assert!(found == "missing fence" && message.contains("fence.proxy.async"), "{found}: {message}");
        let (found, message) = kind(&text("fence.proxy.async;\nbar.sync 0;", WAITED), copies, 128);
        assert!(found == "missing fence" && message.contains("wgmma.fence"), "{found}: {message}");
        let touched = "fence.proxy.async;\nbar.sync 0;\nwgmma.fence.sync.aligned;\nmov.f32 %f3, 0f00000000;";
        let (found, message) = kind(&text(touched, WAITED), copies, 128);
        assert!(found == "missing fence" && message.contains("wgmma.fence"), "{found}: {message}");
        let (found, _) = kind(&text("fence.proxy.async;\nwgmma.fence.sync.aligned;", WAITED), copies, 128);
        assert!(found == "shared memory race" || found == "uninitialised read", "{found}");
        let (found, _) = kind(&text(FENCED, "wgmma.commit_group.sync.aligned;"), copies, 128);
        assert_eq!(found, "product never waited for");
        let (found, _) = kind(&text(FENCED, WAITED), copies, 96);
        assert_eq!(found, "divergent warpgroup");
        // The operands are overwritten while products may still read them.
        let overwritten = "wgmma.commit_group.sync.aligned;\nbar.sync 0;\nshl.b32 %r4, %r0, 4;\nadd.s32 %r4, %r1, %r4;\n\
                           st.shared.u32 [%r4], %r0;\nwgmma.wait_group.sync.aligned 0;";
        let faults = faults_of(&text(FENCED, overwritten), copies, 128);
        assert!(faults.iter().any(|f| f.kind == "shared memory race"), "{faults:?}");
    }
    // One warp multiplies something else.
    let other =
        "fence.proxy.async;\nbar.sync 0;\nwgmma.fence.sync.aligned;\nsetp.ge.u32 q, %r0, 96;\n@q add.s32 %r1, %r1, 16;";
    assert_eq!(kind(&text(other, WAITED), Copies::Early, 128).0, "divergent warpgroup");

    // Sums are not there before they are waited for.
    for copies in [Copies::Late, Copies::Early] {
        let early = text(FENCED, "wgmma.commit_group.sync.aligned;");
        let b = bench(Config { copies, ..Config::default() }, &early);
        b.device.configure("faults=report");
        assert!(run(&b, &early, 128).iter().all(|x| x.is_nan()));
    }
    // Late products read what is there when they are waited for.
    let overwritten = "wgmma.commit_group.sync.aligned;\nbar.sync 0;\nshl.b32 %r4, %r0, 4;\nadd.s32 %r4, %r1, %r4;\nmov.u32 %r3, 0x40004000;\n\
                       st.shared.u32 [%r4], %r3;\nbar.sync 0;\nwgmma.wait_group.sync.aligned 0;";
    let text = text(FENCED, overwritten);
    let sums = [Copies::Late, Copies::Early]
        .map(|copies| run(&bench(Config { copies, ..Config::default() }, &text), &text, 128));
    assert!(sums[0] != sums[1] && sums.iter().flatten().all(|x| x.is_finite()));
}
