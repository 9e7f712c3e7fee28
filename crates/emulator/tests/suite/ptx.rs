//! PTX as text: every family of instructions with results that are computed here, and what must not go unnoticed. (The
//! other suites run what nvcc makes of the emulator's own kernels.)

use std::fmt::Write as _;

use cudarc::driver::sys::CUresult;
use ggro_emulator::{Config, Copies, Fault, Schedule, Streams};

use crate::harness::{Bench, bf16, noise, shape};

const HEAD: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

/// Loads a module of this text.
fn bench(config: Config, text: &str) -> Bench {
    Bench::with_image(config, format!("{text}\0").as_bytes())
}

/// A kernel of four pointers in which thread `t` finds element `t` of the last three as `a64`, `b64` and `c64`, their lower
/// parts as `a32`, `a16` and so on, and whether they are odd as `ap`, `bp` and `cp`. It stores `o64`.
fn kernel(name: &str, body: &str) -> String {
    let mut text = format!(".visible .entry {name}(\n");
    for parameter in ["out", "a", "b", "c"] {
        let comma = if parameter == "c" { "" } else { "," };
        let _ = writeln!(text, ".param .u64 {name}_{parameter}{comma}");
    }
    text += ") {\n.reg .b64 %rd<8>, o64, a64, b64, c64, x64;\n.reg .b32 %r<8>, o32, a32, b32, c32, x32, y32;\n";
    text += ".reg .b16 o16, a16, b16, c16, x16;\n.reg .pred op, ap, bp, cp, q;\n";
    text += "mov.u32 %r0, %tid.x;\nmul.wide.u32 %rd0, %r0, 8;\nmov.u64 o64, 0;\n";
    for x in ["a", "b", "c"] {
        let _ =
            writeln!(text, "ld.param.u64 %rd1, [{name}_{x}];\nadd.s64 %rd1, %rd1, %rd0;\nld.global.u64 {x}64, [%rd1];");
        let _ = writeln!(text, "cvt.u32.u64 {x}32, {x}64;\ncvt.u16.u64 {x}16, {x}64;");
        let _ = writeln!(text, "and.b64 x64, {x}64, 1;\nsetp.ne.u64 {x}p, x64, 0;");
    }
    text += body;
    let _ = writeln!(text, "\nld.param.u64 %rd1, [{name}_out];\nadd.s64 %rd1, %rd1, %rd0;\nst.global.u64 [%rd1], o64;");
    text + "ret;\n}\n"
}

/// Runs one warp or more of such a kernel.
fn run(b: &Bench, name: &str, inputs: [&[u64]; 3]) -> Vec<u64> {
    let n = inputs[0].len();
    let [x, y, z] = inputs.map(|list| b.up(list));
    let out = b.zeros::<u64>(n);
    let args = [b.pointer(&out), b.pointer(&x), b.pointer(&y), b.pointer(&z)];
    b.launch(name, shape(1, n as u32), &args).unwrap_or_else(|e| panic!("{name}: {e}: {:?}", b.device.faults()));
    b.down(&out)
}

type Expected = fn(u64, u64, u64) -> u64;

fn f(x: u64) -> f32 {
    f32::from_bits(x as u32)
}
fn g(x: u64) -> f64 {
    f64::from_bits(x)
}
fn unordered(x: f32, y: f32) -> bool {
    x.is_nan() || y.is_nan()
}
/// The bits of an f32 result: there is one that is not a number.
fn bits(x: f32) -> u64 {
    u64::from(if x.is_nan() { 0x7fff_ffff } else { x.to_bits() })
}
fn sign(x: u64) -> i32 {
    x as u32 as i32
}

/// What an instruction does to the lower parts of a, b and c. The result is what it leaves in `o64`, `o32`, `o16` or `op`.
const INTEGERS: &[(&str, Expected)] = &[
    ("add.s32 o32, a32, b32", |a, b, _| u64::from((a as u32).wrapping_add(b as u32))),
    ("add.s64 o64, a64, b64", |a, b, _| a.wrapping_add(b)),
    ("sub.s32 o32, a32, b32", |a, b, _| u64::from((a as u32).wrapping_sub(b as u32))),
    ("sub.s16 o16, a16, b16", |a, b, _| u64::from((a as u16).wrapping_sub(b as u16))),
    ("mul.lo.s32 o32, a32, b32", |a, b, _| u64::from((a as u32).wrapping_mul(b as u32))),
    ("mul.lo.s64 o64, a64, b64", |a, b, _| a.wrapping_mul(b)),
    ("mul.hi.s32 o32, a32, b32", |a, b, _| ((i64::from(sign(a)) * i64::from(sign(b))) >> 32) as u64 & 0xffff_ffff),
    ("mul.hi.u32 o32, a32, b32", |a, b, _| ((a & 0xffff_ffff) * (b & 0xffff_ffff)) >> 32),
    ("mul.hi.u64 o64, a64, b64", |a, b, _| ((u128::from(a) * u128::from(b)) >> 64) as u64),
    ("mul.wide.s32 o64, a32, b32", |a, b, _| (i64::from(sign(a)) * i64::from(sign(b))) as u64),
    ("mul.wide.u32 o64, a32, b32", |a, b, _| (a & 0xffff_ffff) * (b & 0xffff_ffff)),
    ("mad.lo.s32 o32, a32, b32, c32", |a, b, c| u64::from((a as u32).wrapping_mul(b as u32).wrapping_add(c as u32))),
    ("mad.wide.s32 o64, a32, b32, c64", |a, b, c| ((i64::from(sign(a)) * i64::from(sign(b))) as u64).wrapping_add(c)),
    // (Never by zero: that is a mistake.)
    ("max.u32 x32, b32, 1;\ndiv.s32 o32, a32, x32", |a, b, _| {
        u64::from(sign(a).wrapping_div(sign(b) | i32::from(sign(b) == 0)) as u32)
    }),
    ("max.u64 x64, b64, 1;\ndiv.u64 o64, a64, x64", |a, b, _| a / b.max(1)),
    ("max.u32 x32, b32, 1;\nrem.s32 o32, a32, x32", |a, b, _| {
        u64::from(sign(a).wrapping_rem(sign(b) | i32::from(sign(b) == 0)) as u32)
    }),
    ("min.s32 o32, a32, b32", |a, b, _| u64::from(sign(a).min(sign(b)) as u32)),
    ("max.u32 o32, a32, b32", |a, b, _| u64::from((a as u32).max(b as u32))),
    ("neg.s16 o16, a16", |a, _, _| u64::from((a as u16).wrapping_neg())),
    ("neg.s32 o32, a32", |a, _, _| u64::from((a as u32).wrapping_neg())),
    ("abs.s32 o32, a32", |a, _, _| u64::from(sign(a).wrapping_abs() as u32)),
    ("and.b32 o32, a32, b32", |a, b, _| a & b & 0xffff_ffff),
    ("or.b64 o64, a64, b64", |a, b, _| a | b),
    ("xor.b32 o32, a32, b32", |a, b, _| (a ^ b) & 0xffff_ffff),
    ("not.b32 o32, a32", |a, _, _| !a & 0xffff_ffff),
    (
        "and.b32 x32, b32, 63;\nshl.b32 o32, a32, x32",
        |a, b, _| if b & 63 < 32 { (a << (b & 63)) & 0xffff_ffff } else { 0 },
    ),
    ("and.b32 x32, b32, 63;\nshr.s32 o32, a32, x32", |a, b, _| u64::from((sign(a) >> (b & 63).min(31)) as u32)),
    ("and.b32 x32, b32, 63;\nshr.u32 o32, a32, x32", |a, b, _| {
        (a & 0xffff_ffff).checked_shr((b & 63) as u32).unwrap_or(0)
    }),
    ("and.b32 x32, b32, 127;\nshr.u64 o64, a64, x32", |a, b, _| a.checked_shr((b & 127) as u32).unwrap_or(0)),
    ("and.b32 x32, b32, 127;\nshl.b64 o64, a64, x32", |a, b, _| a.checked_shl((b & 127) as u32).unwrap_or(0)),
    ("shf.l.wrap.b32 o32, a32, b32, c32", |a, b, c| ((b << 32 | a & 0xffff_ffff) << (c & 31)) >> 32),
    ("shf.r.wrap.b32 o32, a32, b32, c32", |a, b, c| ((b << 32 | a & 0xffff_ffff) >> (c & 31)) & 0xffff_ffff),
    ("brev.b32 o32, a32", |a, _, _| u64::from((a as u32).reverse_bits())),
    ("popc.b32 o32, a32", |a, _, _| u64::from((a as u32).count_ones())),
    ("clz.b32 o32, a32", |a, _, _| u64::from((a as u32).leading_zeros())),
    ("bfind.shiftamt.u32 o32, a32", |a, _, _| match a as u32 {
        0 => 0xffff_ffff,
        a => u64::from(a.leading_zeros()),
    }),
    ("and.b32 x32, b32, 31;\nand.b32 y32, c32, 31;\nbfe.u32 o32, a32, x32, y32", |a, b, c| {
        ((a & 0xffff_ffff) >> (b & 31)) & ((1 << (c & 31)) - 1)
    }),
    ("and.b32 y32, c32, 15;\nbfi.b32 o32, a32, b32, y32, 9", |a, b, c| {
        let mask = 0x1ff << (c & 15);
        (b & !mask | a << (c & 15) & mask) & 0xffff_ffff
    }),
    ("prmt.b32 o32, a32, b32, c32", |a, b, c| {
        let bytes = [(a as u32).to_le_bytes(), (b as u32).to_le_bytes()].concat();
        let pick = |i: u32| {
            let selector = c as u32 >> (4 * i) & 15;
            let byte = bytes[selector as usize & 7];
            if selector & 8 == 0 { byte } else { (byte as i8 >> 7) as u8 }
        };
        u64::from(u32::from_le_bytes([0, 1, 2, 3].map(pick)))
    }),
    ("lop3.b32 o32, a32, b32, c32, 0xE8", |a, b, c| (a & b | b & c | a & c) & 0xffff_ffff),
    ("mov.b32 o32, {a16, b16}", |a, b, _| a & 0xffff | (b & 0xffff) << 16),
    ("mov.b64 {x32, o32}, a64", |a, _, _| a >> 32),
    ("mov.b64 o64, {a32, b32}", |a, b, _| a & 0xffff_ffff | b << 32),
    ("cvt.s64.s32 o64, a32", |a, _, _| i64::from(sign(a)) as u64),
    ("cvt.s64.s32 o64, a64", |a, _, _| i64::from(sign(a)) as u64),
    ("cvt.s16.s32 o32, a64", |a, _, _| u64::from(i32::from(a as u16 as i16) as u32)),
    ("cvt.s32.s16 o32, a16", |a, _, _| u64::from(i32::from(a as u16 as i16) as u32)),
    ("selp.b32 o32, a32, b32, cp", |a, b, c| if c & 1 == 1 { a & 0xffff_ffff } else { b & 0xffff_ffff }),
    ("setp.lt.s32 op, a32, b32", |a, b, _| u64::from(sign(a) < sign(b))),
    ("setp.lt.u32 op, a32, b32", |a, b, _| u64::from((a as u32) < b as u32)),
    ("setp.ge.u64 op, a64, b64", |a, b, _| u64::from(a >= b)),
    ("setp.eq.s64 op, a64, b64", |a, b, _| u64::from(a == b)),
    ("setp.ne.s16 op, a16, b16", |a, b, _| u64::from(a as u16 != b as u16)),
    ("setp.gt.s32 q|op, a32, b32", |a, b, _| u64::from(sign(a) <= sign(b))),
    ("and.pred op, ap, !bp", |a, b, _| a & !b & 1),
    ("or.pred op, ap, bp", |a, b, _| (a | b) & 1),
    ("xor.pred op, ap, bp", |a, b, _| (a ^ b) & 1),
    ("not.pred op, ap", |a, _, _| !a & 1),
    // An inner block has names of its own, labels too; a guarded instruction leaves the other lanes alone.
    ("{ .reg .b32 a32;\nmov.u32 a32, 7;\nmov.u32 o32, a32;\n}\n@ap add.s32 o32, o32, 1", |a, _, _| 7 + (a & 1)),
    (
        "mov.u32 o32, 3;\n{ @ap bra again;\nmov.u32 o32, 4;\nagain:\n}\n{ @!bp bra again;\nadd.s32 o32, o32, 8;\nagain:\n}",
        |a, b, _| 4 - (a & 1) + 8 * (b & 1),
    ),
    // Each lane loops as often as it likes, and all meet again behind the loop.
    (
        "and.b32 x32, a32, 7;\nmov.u32 o32, 0;\nloop:\nadd.s32 o32, o32, x32;\nsub.s32 x32, x32, 1;\nsetp.ge.s32 q, x32, 0;\n\
         @q bra loop;\nvote.sync.ballot.b32 x32, ap, -1;\npopc.b32 x32, x32;\nclz.b32 y32, 0;\nadd.s32 o32, o32, y32",
        |a, _, _| (a & 7) * ((a & 7) + 1) / 2 + 32,
    ),
];

const FLOATS: &[(&str, Expected)] = &[
    ("add.f32 o32, a32, b32", |a, b, _| bits(f(a) + f(b))),
    ("sub.rn.f32 o32, a32, b32", |a, b, _| bits(f(a) - f(b))),
    ("mul.f32 o32, a32, b32", |a, b, _| bits(f(a) * f(b))),
    ("div.rn.f32 o32, a32, b32", |a, b, _| bits(f(a) / f(b))),
    ("fma.rn.f32 o32, a32, b32, c32", |a, b, c| bits(f(a).mul_add(f(b), f(c)))),
    ("sqrt.rn.f32 o32, a32", |a, _, _| bits(f(a).sqrt())),
    ("rcp.rn.f32 o32, a32", |a, _, _| bits(1.0 / f(a))),
    ("neg.f32 o32, a32", |a, _, _| (a ^ 0x8000_0000) & 0xffff_ffff),
    ("abs.f32 o32, a32", |a, _, _| a & 0x7fff_ffff),
    // Of two numbers the lower, and -0 is lower than +0; of a number and what is none, the number.
    ("min.f32 o32, a32, b32", |a, b, _| match (f(a), f(b)) {
        (x, y) if x.is_nan() => bits(y),
        (x, y) if y.is_nan() => bits(x),
        (x, y) if x == y => bits(if x.is_sign_negative() { x } else { y }),
        (x, y) => bits(if x < y { x } else { y }),
    }),
    ("max.f32 o32, a32, b32", |a, b, _| match (f(a), f(b)) {
        (x, y) if x.is_nan() => bits(y),
        (x, y) if y.is_nan() => bits(x),
        (x, y) if x == y => bits(if x.is_sign_negative() { y } else { x }),
        (x, y) => bits(if x > y { x } else { y }),
    }),
    ("cvt.sat.f32.f32 o32, a32", |a, _, _| bits(if f(a) > 0.0 { f(a).min(1.0) } else { 0.0 })),
    ("cvt.rn.f32.s32 o32, a32", |a, _, _| bits(sign(a) as f32)),
    ("cvt.rzi.s32.f32 o32, a32", |a, _, _| u64::from(f(a) as i32 as u32)),
    ("cvt.f64.f32 o64, a32", |a, _, _| if f(a).is_nan() { SKIPPED } else { f64::from(f(a)).to_bits() }),
    ("cvt.rn.f32.f64 o32, a64", |a, _, _| bits(g(a) as f32)),
    ("cvt.rn.f64.u64 o64, a64", |a, _, _| (a as f64).to_bits()),
    ("cvt.rn.bf16.f32 o16, a32", |a, _, _| if f(a).is_nan() { 0x7fff } else { u64::from(bf16(f(a))) }),
    ("cvt.rn.bf16x2.f32 o32, a32, b32", |a, b, _| {
        let half = |x: u64| if f(x).is_nan() { 0x7fff } else { u64::from(bf16(f(x))) };
        half(a) << 16 | half(b)
    }),
    ("mov.b32 o32, {0, a16}", |a, _, _| (a & 0xffff) << 16),
    ("add.f64 o64, a64, b64", |a, b, _| if (g(a) + g(b)).is_nan() { SKIPPED } else { (g(a) + g(b)).to_bits() }),
    ("mul.f64 o64, a64, b64", |a, b, _| if (g(a) * g(b)).is_nan() { SKIPPED } else { (g(a) * g(b)).to_bits() }),
    ("fma.rn.f64 o64, a64, b64, c64", |a, b, c| match g(a).mul_add(g(b), g(c)) {
        x if x.is_nan() => SKIPPED,
        x => x.to_bits(),
    }),
    ("setp.lt.f32 op, a32, b32", |a, b, _| u64::from(f(a) < f(b))),
    ("setp.gtu.f32 op, a32, b32", |a, b, _| u64::from(f(a) > f(b) || unordered(f(a), f(b)))),
    ("setp.geu.f32 op, a32, b32", |a, b, _| u64::from(f(a) >= f(b) || unordered(f(a), f(b)))),
    ("setp.neu.f32 op, a32, b32", |a, b, _| u64::from(f(a) != f(b))),
    ("setp.ne.f32 op, a32, b32", |a, b, _| u64::from(f(a) < f(b) || f(a) > f(b))),
    ("setp.num.f32 op, a32, b32", |a, b, _| u64::from(!f(a).is_nan() && !f(b).is_nan())),
    ("setp.nan.f32 op, a32, b32", |a, b, _| u64::from(f(a).is_nan() || f(b).is_nan())),
    ("setp.leu.f64 op, a64, b64", |a, b, _| u64::from(g(a) <= g(b) || g(a).is_nan() || g(b).is_nan())),
];

/// No expectation.
const SKIPPED: u64 = 0xdead_beef_dead_beef;

/// Values of every kind: small and large integers, floats with all that is special about them, noise.
fn values(seed: u64) -> Vec<u64> {
    let mut list = vec![0, 1, 2, 31, 32, 33, 63, 64, u64::MAX, 0x8000_0000, 0x7fff_ffff, 0x8000_0000_0000_0000];
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.5,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MIN_POSITIVE,
        1.0e-40,
        f32::MAX,
        65520.0,
    ];
    list.extend(special.map(|x| u64::from(x.to_bits()) << 32 | u64::from(x.to_bits())));
    list.extend([0.1, -3.0e200, f64::NAN, 1.0e-310].map(f64::to_bits));
    let mut state = seed;
    while list.len() < 256 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        list.push(state ^ state >> 29);
    }
    // Another order for each operand, so that special values meet.
    let n = list.len();
    (0..n).map(|i| list[(i * (2 * seed as usize + 1) + seed as usize) % n]).collect()
}

fn compare(cases: &[(&str, Expected)]) {
    let mut text = HEAD.to_owned();
    for (i, (body, _)) in cases.iter().enumerate() {
        let last = body.rsplit(";\n").find(|s| s.contains(" o") || s.contains("|o")).unwrap();
        let end = match last {
            l if l.contains("o64") => "",
            l if l.contains("o32") => ";\ncvt.u64.u32 o64, o32",
            l if l.contains("o16") => ";\ncvt.u64.u16 o64, o16",
            _ => ";\nselp.u64 o64, 1, 0, op",
        };
        text += &kernel(&format!("t{i}"), &format!("{body}{end};"));
    }
    let b = bench(Config::default(), &text);
    let (x, y, z) = (values(1), values(2), values(5));
    for apart in [false, true] {
        b.device.configure(if apart { "lanes=apart" } else { "lanes=together" });
        for (i, (body, expected)) in cases.iter().enumerate() {
            for (t, got) in run(&b, &format!("t{i}"), [&x, &y, &z]).into_iter().enumerate() {
                let right = expected(x[t], y[t], z[t]);
                assert!(
                    right == SKIPPED || got == right,
                    "{body}: of {:#x}, {:#x}, {:#x} it is {right:#x}, not {got:#x}",
                    x[t],
                    y[t],
                    z[t]
                );
            }
        }
    }
    b.assert_clean();
}

#[test]
fn integers() {
    compare(INTEGERS);
}

#[test]
fn floats() {
    compare(FLOATS);
}

#[test]
fn approximations() {
    type Exact = fn(f64) -> f64;
    let cases: [(&str, Exact); 4] = [
        ("ex2.approx.f32", f64::exp2),
        ("lg2.approx.f32", f64::log2),
        ("rsqrt.approx.f32", |x| 1.0 / x.sqrt()),
        ("rcp.approx.f32", f64::recip),
    ];
    let text: String = cases
        .iter()
        .enumerate()
        .map(|(i, (op, _))| kernel(&format!("t{i}"), &format!("{op} o32, a32;\ncvt.u64.u32 o64, o32;")))
        .collect();
    let b = bench(Config::default(), &(HEAD.to_owned() + &text));
    let x: Vec<f32> = noise(256, 3).iter().map(|x| x.abs() * 20.0 + 0.01).collect();
    let a: Vec<u64> = x.iter().map(|x| u64::from(x.to_bits())).collect();
    for (i, (op, exact)) in cases.iter().enumerate() {
        for (x, got) in x.iter().zip(run(&b, &format!("t{i}"), [&a, &a, &a])) {
            let right = exact(f64::from(*x));
            assert!((f64::from(f(got)) - right).abs() <= right.abs() * 2f64.powi(-23), "{op} of {x}: {}", f(got));
        }
    }
}

#[test]
fn memory_of_every_width() {
    // Signs are extended into wider registers, vectors are split, and the offset counts in bytes.
    let body = "ld.param.u64 %rd2, [t_a];\n\
        ld.global.s8 x16, [%rd2+1];\ncvt.s32.s16 o32, x16;\n\
        ld.global.s16 x32, [%rd2+2];\nadd.s32 o32, o32, x32;\n\
        ld.global.nc.L1::no_allocate.v4.u32 {x32, y32, %r1, %r2}, [%rd2+16];\nadd.s32 o32, o32, y32;\n\
        ld.global.v2.u16 {x16, o16}, [%rd2+4];\ncvt.u32.u16 x32, o16;\nadd.s32 o32, o32, x32;\n\
        ld.global.u32 x64, [%rd2+8];\ncvt.u64.u32 o64, o32;\nadd.s64 o64, o64, x64;";
    let b = bench(Config::default(), &(HEAD.to_owned() + &kernel("t", body)));
    let a: Vec<u64> = [0x0003_0002_fffe_8000u64, 0x8000_0001, 5 << 32 | 1, 7]
        .into_iter()
        .chain(std::iter::repeat(0))
        .take(32)
        .collect();
    let got = run(&b, "t", [&a, &a, &a]);
    // -128 + -2 + 5 + 3, wrapped to 32 bits, and a word that is not sign-extended.
    assert_eq!(got[0], u64::from((-128i32 - 2 + 5 + 3) as u32) + 0x8000_0001);
    b.assert_clean();
}

#[test]
fn warps_together() {
    type OfThread = fn(&[u64], usize) -> u64;
    let cases: &[(&str, OfThread)] = &[
        ("shfl.sync.bfly.b32 o32, a32, 5, 31, -1", |a, t| a[t ^ 5]),
        (
            "shfl.sync.up.b32 o32|op, a32, 3, 0, -1;\nselp.b32 o32, o32, 77, op",
            |a, t| if t % 32 < 3 { 77 } else { a[t - 3] },
        ),
        ("shfl.sync.down.b32 o32, a32, 2, 0x101f, -1", |a, t| if t % 16 >= 14 { a[t] } else { a[t + 2] }),
        ("shfl.sync.idx.b32 o32, a32, 9, 0x181f, -1", |a, t| a[t / 8 * 8 + 1]),
        ("vote.sync.ballot.b32 o32, ap, -1", |a, t| (0..32).map(|l| (a[t / 32 * 32 + l] & 1) << l).sum()),
        ("vote.sync.any.pred op, ap, -1;\nselp.b32 o32, 1, 0, op", |_, _| 1),
        ("vote.sync.all.pred op, ap, -1;\nselp.b32 o32, 1, 0, op", |_, _| 0),
        // The odd lanes by themselves.
        (
            "mov.u32 o32, 0;\n@!ap bra done;\nvote.sync.ballot.b32 x32, ap, 0xaaaaaaaa;\nmov.u32 o32, x32;\ndone:\nbar.warp.sync -1",
            |a, t| {
                if a[t] & 1 == 1 { 0xaaaa_aaaa } else { 0 }
            },
        ),
        ("mov.u32 o32, 5;\nelect.sync x32|op, -1;\n@op add.s32 o32, x32, 6", |_, t| if t % 32 == 0 { 6 } else { 5 }),
        (
            "and.b32 x32, %r0, 16;\nsetp.ne.u32 q, x32, 0;\nmov.u32 o32, 9;\n@!q bra done;\nelect.sync o32|op, 0xffff0000;\n\
             done:\nbar.warp.sync -1",
            |_, t| if t % 32 >= 16 { 16 } else { 9 },
        ),
        (
            "prefetch.global.L2 [%rd1];\ngriddepcontrol.wait;\ngriddepcontrol.launch_dependents;\nmov.u32 o32, a32",
            |a, t| a[t],
        ),
        ("bar.red.popc.u32 o32, 0, ap", |a, _| a.iter().map(|x| x & 1).sum()),
        ("bar.red.or.pred op, 0, ap;\nselp.b32 o32, 1, 0, op", |_, _| 1),
    ];
    let text: String = cases
        .iter()
        .enumerate()
        .map(|(i, (body, _))| kernel(&format!("t{i}"), &format!("{body};\ncvt.u64.u32 o64, o32;")))
        .collect();
    let a: Vec<u64> = (0..64).map(|t| 100 + t).collect();
    for schedule in [Schedule::Forward, Schedule::Reverse, Schedule::Shuffle(3)] {
        let b = bench(Config { schedule, ..Config::default() }, &(HEAD.to_owned() + &text));
        for lanes in ["lanes=together", "lanes=apart"] {
            b.device.configure(lanes);
            for (i, (body, expected)) in cases.iter().enumerate() {
                for (t, got) in run(&b, &format!("t{i}"), [&a, &a, &a]).into_iter().enumerate() {
                    assert_eq!(got, expected(&a, t), "{body}, thread {t}, {schedule:?}, {lanes}");
                }
            }
        }
        b.assert_clean();
    }
}

/// Three warpgroups under these bounds, of which the first runs one text and the others another.
fn registers(bounds: &str, first: &str, others: &str) -> String {
    let body = format!(
        "setp.ge.u32 q, %r0, 128;\n@q bra others;\n{first}\nbra end;\nothers:\n{others}\nend:\nmov.u64 o64, 1;"
    );
    HEAD.to_owned() + &kernel("t", &body).replacen(") {", &format!(") {bounds} {{"), 1)
}

#[test]
fn registers_of_warpgroups() {
    let (dec, inc) = ("setmaxnreg.dec.sync.aligned.u32", "setmaxnreg.inc.sync.aligned.u32");
    let all = vec![0u64; 384];
    let launch = |config: Config, text: &str| {
        let b = bench(config, text);
        let (x, out) = (b.up(&all), b.zeros::<u64>(384));
        let p = b.pointer(&x);
        b.launch("t", shape(1, 384), &[b.pointer(&out), p, p, p]).unwrap();
        let faults = b.device.faults();
        b.device.reset();
        faults
    };
    // 384 threads have 168 registers each at entry: what 128 of them give is enough for the rest.
    let right = registers(".maxntid 384, 1, 1", &format!("{dec} 40;"), &format!("{inc} 232;"));
    for config in Config::matrix() {
        assert_eq!(launch(config, &right), [], "{config:?}");
    }
    let unknown = registers("", &format!("{dec} 24;\n{inc} 256;"), "");
    assert_eq!(launch(Config::default(), &unknown), []);
    let one_warp = "setp.ge.u32 q, %r0, 96;\n@q bra end;\n";
    for (bounds, first, others, kind, message) in [
        // (Not one of the four.)
        (".maxntid 384, 1, 1", format!("{one_warp}{dec} 40;"), String::new(), "divergent warpgroup", "exited without"),
        (
            ".maxntid 384, 1, 1",
            format!("setp.ge.u32 q, %r0, 96;\n@q {dec} 40;\n@!q {dec} 48;"),
            String::new(),
            "divergent warpgroup",
            "in its place",
        ),
        (".maxntid 384, 1, 1", format!("{dec} 176;"), String::new(), "undefined registers", "has 168 registers"),
        (".maxntid 384, 1, 1", format!("{inc} 160;"), String::new(), "undefined registers", "has 168 registers"),
        (".maxnreg 128", format!("{dec} 136;"), String::new(), "undefined registers", "has 128 registers"),
        // Two blocks of a multiprocessor share its registers.
        (".maxntid 384, 1, 1 .minnctapersm 2", format!("{dec} 88;"), String::new(), "undefined registers", "has 80"),
        // What the others want is not there.
        (".maxntid 384, 1, 1", format!("{dec} 48;"), format!("{inc} 232;"), "endless wait", ""),
        ("", format!("{dec} 25;"), String::new(), "undefined registers", "by 8"),
        ("", format!("{dec} 16;"), String::new(), "undefined registers", "24 to 256"),
    ] {
        let faults = launch(Config::default(), &registers(bounds, &first, &others));
        let found = faults.first().map(|f| (f.kind.as_str(), f.message.contains(message)));
        assert_eq!(found, Some((kind, true)), "{bounds} {first} {others}: {faults:?}");
    }
}

/// d = c + a b, all elements of each matrix alike: what a tensor core cuts from its sums.
#[test]
fn sums_of_matrix_instructions() {
    let body = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {o32, x32, y32, %r1}, {a32, a32, a32, a32}, {b32, b32}, \
                {c32, c32, c32, c32};\ncvt.u64.u32 o64, o32;";
    let b = bench(Config::default(), &(HEAD.to_owned() + &kernel("t", body)));
    let all = |x: u64| vec![x; 32];
    let pair = |x: f32| u64::from(bf16(x)) << 16 | u64::from(bf16(x));
    let one = u64::from(1.0f32.to_bits());
    let tiny = |power: i32| 2f32.powi(power);
    // The largest term is 1, so bits below 2^-24 (A100) or 2^-25 (H100) are cut from each term.
    for (power, exact, a100, h100) in [
        (-24, 1.0 + tiny(-20), 1.0 + tiny(-20), 1.0 + tiny(-20)),
        (-25, 1.0 + tiny(-21), 1.0, 1.0 + tiny(-21)),
        (-26, 1.0 + tiny(-22), 1.0, 1.0),
    ] {
        for (mode, expected) in [("exact", exact), ("8", a100), ("16", h100)] {
            b.device.configure(&format!("mma={mode}"));
            let got = run(&b, "t", [&all(pair(tiny(power / 2))), &all(pair(tiny(power - power / 2))), &all(one)]);
            assert!(
                got.iter().all(|x| f(*x) == expected),
                "16 products of 2^{power}, {mode}: {} {expected}",
                f(got[0])
            );
        }
    }
    // Negative terms are cut towards zero, too; what is infinite stays so.
    for mode in ["exact", "8", "16"] {
        b.device.configure(&format!("mma={mode}"));
        let got = run(&b, "t", [&all(pair(-3.0)), &all(pair(0.5)), &all(u64::from(0.25f32.to_bits()))]);
        assert_eq!(f(got[5]), -23.75, "{mode}");
        let got = run(&b, "t", [&all(pair(f32::INFINITY)), &all(pair(0.5)), &all(one)]);
        assert_eq!(f(got[5]), f32::INFINITY, "{mode}");
    }
    assert_eq!(b.device.report().kernels["t"].matrix_flops, 15 * 4096);
}

/// A kernel that copies element `t` to shared memory asynchronously and reads another thread's.
fn asynchronous(wait: &str, barrier: &str) -> String {
    let body = format!(
        "ld.param.u64 %rd2, [t_a];\nshl.b32 x32, %r0, 4;\nmul.wide.u32 %rd3, %r0, 16;\nadd.s64 %rd2, %rd2, %rd3;\n\
         mov.u32 y32, memory;\nadd.s32 y32, y32, x32;\n\
         cp.async.cg.shared.global.L2::128B [y32], [%rd2], 16, 16;\ncp.async.commit_group;\n{wait}\n{barrier}\n\
         xor.b32 x32, x32, 16;\nmov.u32 y32, memory;\nadd.s32 y32, y32, x32;\nld.shared.u64 o64, [y32];"
    );
    HEAD.to_owned() + ".extern .shared .align 16 .b8 memory[];\n" + &kernel("t", &body)
}

fn copy(b: &Bench) -> Vec<u64> {
    let a: Vec<u64> = (0..128).collect();
    let (x, out) = (b.up(&a), b.zeros::<u64>(64));
    let p = b.pointer(&x);
    b.launch("t", shape(1, 64).shared(1024), &[b.pointer(&out), p, p, p]).unwrap();
    b.stream.clone_dtoh(&out).unwrap_or_default()
}

#[test]
fn asynchronous_copies() {
    let right: Vec<u64> = (0..64).map(|t| 2 * (t ^ 1)).collect();
    let whole = asynchronous("cp.async.wait_group 0;", "bar.sync 0;");
    for (schedule, copies) in [(Schedule::Forward, Copies::Late), (Schedule::Reverse, Copies::Early)] {
        for checked in [false, true] {
            let b = bench(Config { checked, schedule, copies, streams: Streams::Eager }, &whole);
            assert_eq!(copy(&b), right);
            b.assert_clean();
        }
    }
    // Late copies show a missing wait in what is read.
    let b = bench(Config::default(), &asynchronous("", "bar.sync 0;"));
    assert!(copy(&b).iter().all(|x| *x == u64::MAX));
}

/// Thread `t` of the first warp publishes 3 t in shared memory, and one of the second reads it, with these lines in between.
fn handed_over(first: &str, second: &str) -> String {
    let body = format!(
        ".shared .align 8 .b8 s[128];\n.shared .align 8 .b8 full[8];\nmov.u32 y32, full;\nsetp.ne.u32 q, %r0, 0;\n\
         @!q mbarrier.init.shared::cta.b64 [y32], 33;\nfence.mbarrier_init.release.cluster;\nbar.sync 0;\nand.b32 x32, %r0, 31;\nshl.b32 x32, x32, 2;\n\
         mov.u32 %r1, s;\nadd.s32 x32, %r1, x32;\nsetp.ge.u32 q, %r0, 32;\n@q bra reader;\nmul.lo.s32 %r2, %r0, 3;\n\
         st.shared.u32 [x32], %r2;\n{first}\nbra done;\nreader:\n{second}\nld.shared.u32 o32, [x32];\ncvt.u64.u32 o64, o32;\ndone:"
    );
    HEAD.to_owned() + &kernel("t", &body)
}

#[test]
fn warps_that_hand_over() {
    let all: Vec<u64> = (0..64).collect();
    let right: Vec<u64> = (0..64).map(|t| if t < 32 { 0 } else { 3 * (t - 32) }).collect();
    let poll =
        |wait: &str, phase: u32| format!("again:\n{wait} op, [y32], {phase};\n@op bra passed;\nbra again;\npassed:");
    let one_more = "mbarrier.arrive.shared::cta.b64 _, [y32];\nsetp.ne.u32 q, %r0, 0;\n\
                    @!q mbarrier.arrive.release.cta.shared::cta.b64 _, [y32], 1;";
    // A phase in which bytes were announced ends when they have come, too.
    let bytes = ".shared .align 16 .b8 copied[32];\nmbarrier.arrive.shared::cta.b64 _, [y32];\nsetp.ne.u32 q, %r0, 0;\n@q bra done;\n\
                 mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [y32], 16;\n\
                 mbarrier.arrive.expect_tx.shared::cta.b64 _, [y32], 16;\nmov.u32 %r3, copied;\nld.param.u64 %rd2, [t_a];\n\
                 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r3], [%rd2], 32, [y32];";
    let cases = [
        ("bar.arrive 1, 64;".to_owned(), "bar.sync 1, 64;".to_owned()),
        ("bar.sync 3, 64;".to_owned(), "bar.sync 3, 64;".to_owned()),
        (one_more.to_owned(), poll("mbarrier.try_wait.parity.shared::cta.b64", 0)),
        (one_more.to_owned(), poll("mbarrier.test_wait.parity.acquire.cta.shared::cta.b64", 0)),
        (bytes.to_owned(), poll("mbarrier.try_wait.parity.shared::cta.b64", 0)),
        // The phase before the first counts as complete.
        (String::new(), poll("mbarrier.try_wait.parity.shared::cta.b64", 1) + "\nbar.sync 2, 32;"),
    ];
    for (i, (first, second)) in cases.iter().enumerate() {
        for (config, lanes) in Config::matrix().into_iter().flat_map(|c| [(c, "lanes=together"), (c, "lanes=apart")]) {
            let b = bench(config, &handed_over(first, second));
            b.device.configure(lanes);
            b.device.configure("faults=report");
            let got = run(&b, "t", [&all, &all, &all]);
            let raced = b.device.faults().iter().any(|f| f.kind.contains("race") || f.kind == "uninitialised read");
            if i == 5 {
                assert_eq!(raced, config.checked, "{config:?}");
            } else {
                assert_eq!(got, right, "{first} {second} {config:?}");
                b.assert_clean();
            }
        }
    }
    for (first, second, kind) in [
        ("", "bar.sync 1, 64;", "deadlock"),
        ("bar.sync 1, 64;", "bar.sync 2, 64;", "deadlock"),
        ("bar.arrive 1, 64;", "bar.sync 1, 96;", "named barrier"),
        ("bar.arrive 1, 33;", "", "named barrier"),
        ("mbarrier.arrive.shared::cta.b64 _, [y32], 34;", "", "mbarrier"),
        ("mbarrier.inval.shared::cta.b64 [y32];", "", "mbarrier"),
        ("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [y32], 1048576;", "", "mbarrier"),
        (
            "mbarrier.arrive.shared::cta.b64 _, [y32];",
            &poll("mbarrier.try_wait.parity.shared::cta.b64", 0),
            "endless wait",
        ),
        ("setmaxnreg.dec.sync.aligned.u32 25;", "", "undefined registers"),
    ] {
        let b = bench(Config::default(), &handed_over(first, second));
        let x = b.up(&all);
        let p = b.pointer(&x);
        b.launch("t", shape(1, 64), &[p, p, p, p]).unwrap();
        let found = fault(&b, CUresult::CUDA_ERROR_LAUNCH_FAILED);
        assert_eq!(found.kind, kind, "{first} {second}");
        // Nobody goes on: who is where.
        assert!(kind != "endless wait" || found.message.ends_with(": warp 1 at ptx:0"), "{found:?}");
        b.device.reset();
    }
    // All know of the mbarrier before they use it, and so do copies.
    let first = |text: String| {
        let b = bench(Config { checked: true, ..Config::default() }, &text);
        let (x, out) = (b.up(&all), b.zeros::<u64>(64));
        let p = b.pointer(&x);
        b.launch("t", shape(1, 64), &[b.pointer(&out), p, p, p]).unwrap();
        let first = b.device.faults().into_iter().next();
        b.device.reset();
        first.map(|fault| fault.kind + ": " + &fault.message).unwrap_or_default()
    };
    let copied = handed_over(bytes, &poll("mbarrier.try_wait.parity.shared::cta.b64", 0));
    assert_eq!(first(copied.clone()), "");
    let found = first(copied.replacen("bar.sync 0;", "", 1));
    assert!(found.starts_with("shared memory race: thread (0,0,0) initialised the mbarrier"), "{found}");
    let fence = "fence.mbarrier_init.release.cluster;";
    let found = first(copied.replacen(fence, "", 1));
    assert!(found.starts_with("missing fence: no fence.mbarrier_init since thread (0,0,0)"), "{found}");
    assert_eq!(first(copied.replacen(fence, "fence.proxy.async;", 1)), "");
}

/// Two warps read the same, give it back, and the third writes over it. Each of the two may be the one that gives it back too soon.
#[test]
fn what_several_warps_have_read() {
    let text = |early: [bool; 2]| {
        let (read, arrive) = ("ld.shared.u32 o32, [x32];", "mbarrier.arrive.shared::cta.b64 _, [y32];");
        let [first, second] = early.map(|early| if early { [arrive, read] } else { [read, arrive] }.join("\n"));
        let body = format!(
            ".shared .align 8 .b8 s[128];\n.shared .align 8 .b8 empty[8];\nmov.u32 y32, empty;\nand.b32 x32, %r0, 31;\n\
             shl.b32 x32, x32, 2;\nmov.u32 %r1, s;\nadd.s32 x32, %r1, x32;\nsetp.ge.u32 q, %r0, 32;\n@q bra made;\n\
             st.shared.u32 [x32], %r0;\nsetp.ne.u32 q, %r0, 0;\n@!q mbarrier.init.shared::cta.b64 [y32], 64;\nmade:\n\
             bar.sync 0;\nsetp.lt.u32 q, %r0, 32;\n@q bra first;\nsetp.lt.u32 q, %r0, 64;\n@q bra second;\nagain:\n\
             mbarrier.try_wait.parity.shared::cta.b64 op, [y32], 0;\n@!op bra again;\nst.shared.u32 [x32], %r0;\nbra end;\n\
             first:\n{first}\nbra end;\nsecond:\n{second}\nend:"
        );
        HEAD.to_owned() + &kernel("t", &body)
    };
    let x = vec![0u64; 96];
    for schedule in [Schedule::Forward, Schedule::Reverse, Schedule::Shuffle(1)] {
        let config = Config { checked: true, schedule, ..Config::default() };
        for (early, wrong) in [([false; 2], false), ([true, false], true), ([false, true], true), ([true; 2], true)] {
            let b = bench(config, &text(early));
            let p = b.up(&x);
            let p = b.pointer(&p);
            b.launch("t", shape(1, 96), &[p, p, p, p]).unwrap();
            let found = b.device.faults().into_iter().next().map(|fault| fault.kind + ": " + &fault.message);
            let raced = found
                .as_ref()
                .is_some_and(|f| f.starts_with("shared memory race: write of shared memory, read by several warps"));
            assert!(if wrong { raced } else { found.is_none() }, "{early:?} {schedule:?}: {found:?}");
            b.device.reset();
        }
    }
}

/// Eight warps and the one that would feed them, each waiting for the other: the fault says where all of them are.
#[test]
fn waits_without_an_end() {
    let wait = |name: &str, at: u32| {
        format!(
            "mbarrier.try_wait.parity.shared::cta.b64 op, [y32+{at}], 0;\n@op bra {name};\nbra again_{name};\n{name}:"
        )
    };
    let body = format!(
        ".shared .align 8 .b8 s[16];\nmov.u32 y32, s;\nsetp.ne.u32 q, %r0, 0;\n@q bra made;\n\
         mbarrier.init.shared::cta.b64 [y32], 1;\nmbarrier.init.shared::cta.b64 [y32+8], 1;\nmade:\nbar.sync 0;\n\
         setp.lt.u32 q, %r0, 32;\n@q bra first;\nsetp.lt.u32 q, %r0, 64;\n@q bra second;\n.loc 1 30 1\nagain_others:\n{}\n\
         bra end;\nfirst:\n.loc 1 10 1\nagain_one:\n{}\nbra end;\nsecond:\n.loc 1 20 1\nbar.sync 0;\nend:",
        wait("others", 8),
        wait("one", 0)
    );
    let text = HEAD.to_owned() + &kernel("t", &body) + ".file 1 \"ring.cu\"\n";
    for config in Config::matrix() {
        let b = bench(config, &text);
        let x = b.up(&vec![0u64; 288]);
        let p = b.pointer(&x);
        b.launch("t", shape(1, 288), &[p, p, p, p]).unwrap();
        let found = b.device.faults().into_iter().find(|f| f.kind == "endless wait").expect("an end in words");
        let places = "warp 0 at ring.cu:10; warps 2-8 at ring.cu:30; warp 1 at the barrier of ring.cu:20";
        assert!(found.message.ends_with(places), "{found:?}");
        b.device.reset();
    }
}

/// The only fault of a launch that fails with this error.
fn fault(b: &Bench, error: CUresult) -> Fault {
    assert_eq!(b.error(), Some(error), "{:?}", b.device.faults());
    b.device.faults()[0].clone()
}

#[test]
fn mistakes() {
    let observed = Config { checked: true, ..Config::default() };
    let failed = CUresult::CUDA_ERROR_LAUNCH_FAILED;
    let b = bench(observed, &asynchronous("", "bar.sync 0;"));
    copy(&b);
    assert_eq!(fault(&b, failed).kind, "asynchronous copy race");
    drop(b);
    let b = bench(observed, &asynchronous("cp.async.wait_group 0;", ""));
    copy(&b);
    assert_eq!(fault(&b, failed).kind, "shared memory race");
    drop(b);

    let inputs = values(1);
    let x = &inputs[..32];
    let wrong = |body: &str| {
        let b = bench(Config::default(), &(HEAD.to_owned() + &kernel("t", body)));
        let (a, out) = (b.up(x), b.zeros::<u64>(32));
        let p = b.pointer(&a);
        b.launch("t", shape(1, 32), &[b.pointer(&out), p, p, p]).unwrap();
        let f = b.device.faults().into_iter().next().unwrap();
        let error = b.error();
        b.device.reset();
        (f, error)
    };
    let illegal = Some(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    let (f, error) = wrong("ld.param.u64 %rd2, [t_a];\nadd.s64 %rd2, %rd2, %rd0;\nld.global.u64 o64, [%rd2+8];");
    assert_eq!((f.kind.as_str(), f.thread, error), ("out of bounds", Some([31, 0, 0]), illegal));
    assert!(f.message.contains("0 bytes past the end of an allocation of 256"), "{f:?}");
    let (f, error) = wrong("ld.param.u64 %rd2, [t_a];\nld.global.u64 o64, [%rd2+4];");
    assert_eq!((f.kind.as_str(), error), ("misaligned access", Some(CUresult::CUDA_ERROR_MISALIGNED_ADDRESS)));
    let forgotten = HEAD.to_owned()
        + &kernel(
            "t",
            ".shared .align 16 .b8 s[64];\nmov.u32 x32, s;\nld.param.u64 %rd2, [t_a];\n\
             cp.async.cg.shared.global [x32], [%rd2], 16;\ncp.async.commit_group;",
        );
    let b = bench(observed, &forgotten);
    let (a, out) = (b.up(&inputs[..2]), b.zeros::<u64>(1));
    let p = b.pointer(&a);
    b.launch("t", shape(1, 1), &[b.pointer(&out), p, p, p]).unwrap();
    assert_eq!(fault(&b, failed).kind, "asynchronous copy never waited for");
    drop((a, out));
    drop(b);
    // A bulk copy over what threads have written, without a fence for it.
    for (fence, kind) in [("", Some("missing fence")), ("fence.proxy.async.shared::cta;", None)] {
        let body = format!(
            ".shared .align 16 .b8 s[16];\n.shared .align 8 .b8 full[8];\nmov.u32 x32, s;\nmov.u32 y32, full;\n\
             st.shared.u64 [x32], a64;\nmbarrier.init.shared::cta.b64 [y32], 1;\n\
             fence.mbarrier_init.release.cluster;\n{fence}\n\
             mbarrier.arrive.expect_tx.shared::cta.b64 _, [y32], 16;\nld.param.u64 %rd2, [t_a];\n\
             cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [x32], [%rd2], 16, [y32];\n\
             again:\nmbarrier.try_wait.parity.shared::cta.b64 op, [y32], 0;\n@op bra passed;\nbra again;\npassed:"
        );
        let b = bench(observed, &(HEAD.to_owned() + &kernel("t", &body)));
        let (a, out) = (b.up(&inputs[..2]), b.zeros::<u64>(1));
        let p = b.pointer(&a);
        b.launch("t", shape(1, 1), &[b.pointer(&out), p, p, p]).unwrap();
        assert_eq!(b.device.faults().first().map(|f| f.kind.as_str()), kind);
        b.device.reset();
    }
    // What is read as constant must not be written by the launch.
    let text = HEAD.to_owned()
        + &kernel("t", "ld.param.u64 %rd2, [t_out];\nst.global.u64 [%rd2], a64;\nld.global.nc.u64 o64, [%rd2];");
    let b = bench(observed, &text);
    let (a, out) = (b.up(&inputs[..1]), b.zeros::<u64>(1));
    let p = b.pointer(&a);
    b.launch("t", shape(1, 1), &[b.pointer(&out), p, p, p]).unwrap();
    assert_eq!(fault(&b, failed).kind, "read-only data written");
    drop((a, out));
    drop(b);
    let (f, error) = wrong(".shared .align 8 .b8 s[64];\nmov.u32 x32, s;\nld.shared.u64 o64, [x32+64];");
    assert_eq!((f.kind.as_str(), error), ("out of bounds", illegal));
    let (f, _) = wrong("shfl.sync.idx.b32 o32, a32, 0, 31, 0xff;");
    assert_eq!(f.kind, "warp mask");
    let (f, _) = wrong("setp.gt.u32 q, %r0, 15;\n@q ret;\nshfl.sync.idx.b32 o32, a32, 20, 31, 0xffff;");
    assert_eq!(f.kind, "undefined shuffle");
    let (f, _) = wrong("setp.gt.u32 q, %r0, 15;\n@q bra two;\nbar.sync 0;\nbra end;\ntwo:\nbar.sync 0;\nend:");
    assert_eq!(f.kind, "divergent barrier");
    let (f, _) = wrong("setp.gt.u32 q, %r0, 15;\n@q bra two;\nbar.sync 0;\nbra end;\ntwo:\nbar.warp.sync -1;\nend:");
    assert_eq!(f.kind, "deadlock");
    assert!(f.message.contains("16 thread(s) wait for bar.sync 0"), "{f:?}");
    let (f, _) = wrong("div.s32 o32, a32, %r0;");
    assert_eq!((f.kind.as_str(), f.thread), ("division by zero", Some([0, 0, 0])));
    let (f, _) = wrong(
        ".shared .align 16 .b8 s[64];\nmov.u32 x32, s;\nmov.u32 y32, 17;\nld.param.u64 %rd2, [t_a];\n\
         cp.async.cg.shared.global [x32], [%rd2], 16, y32;",
    );
    assert_eq!(f.kind, "undefined copy");
    let (f, _) = wrong("setp.gt.u32 q, %r0, 15;\n@q trap;");
    assert_eq!((f.kind.as_str(), f.thread), ("trap", Some([16, 0, 0])));
}

#[test]
fn what_is_not_known_is_named() {
    for directive in [".local .align 4 .b8 stack[16]", ".const .b32 one"] {
        let b = bench(Config::default(), &(HEAD.to_owned() + &kernel("t", &format!("{directive};"))));
        let x = b.zeros::<u64>(32);
        let p = b.pointer(&x);
        b.launch("t", shape(1, 32), &[p, p, p, p]).unwrap();
        assert_eq!(b.error(), Some(CUresult::CUDA_ERROR_INVALID_PTX));
        assert!(b.device.faults()[0].message.contains(directive), "{:?}", b.device.faults());
        b.device.reset();
    }
    let b = bench(Config::default(), &(HEAD.to_owned() + &kernel("t", "sin.approx.f32 o32, a32;")));
    let x = b.zeros::<u64>(32);
    let p = b.pointer(&x);
    b.launch("t", shape(1, 32), &[p, p, p, p]).unwrap();
    assert_eq!(b.error(), Some(CUresult::CUDA_ERROR_INVALID_PTX));
    let f = b.device.faults()[0].clone();
    assert_eq!((f.kind.as_str(), f.kernel.as_str()), ("unsupported code", "t"));
    assert!(f.message.contains("unknown instruction: `sin.approx.f32 o32, a32`"), "{f:?}");
    b.device.reset();
    // Parameters, bounds and shared memory come from the text.
    assert_eq!(b.launch("t", shape(1, 2048), &[p]).unwrap_err().0, CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(b.launch("t", shape(1, 32), &[p]).unwrap_err().0, CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(b.function("other").unwrap_err().0, CUresult::CUDA_ERROR_NOT_FOUND);
}
