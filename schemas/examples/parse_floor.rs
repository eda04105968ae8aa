//! What reading a message costs beside the least that it can cost: visiting every separator with memchr.
//!
//! `cargo run --release -p schemas --example parse_floor`

#![expect(clippy::print_stdout, reason = "an example prints what it measures")]

use schemas::hl7v2::{Limits, Message, charset};
use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: usize = 41;

fn main() {
    let limits = Limits { bytes: 64 << 20, delimiters: 20 << 20, ..Limits::default() };
    for (name, text) in messages() {
        let parse = || {
            black_box(Message::parse(black_box(&text), &limits).is_ok());
        };
        let floor = || {
            black_box(visit_separators(black_box(&text)));
        };
        let (cost, floor_cost, ratio) = against(parse, floor);
        let allocations = allocation_counter::measure(parse);
        println!(
            "{name}, {} bytes: {cost:.2} us, {} allocations, {} bytes at most; floor {floor_cost:.2} us, ratio {ratio:.2}",
            text.len(),
            allocations.count_total,
            allocations.bytes_max,
        );
        let decode = || {
            black_box(charset::decode(black_box(text.as_bytes()), None).issues.len());
        };
        let (cost, _, ratio) = against(decode, floor);
        let allocations = allocation_counter::measure(decode);
        println!("    decoding: {cost:.2} us, {} allocations, ratio {ratio:.2}", allocations.count_total);
    }
}

/// Visits every separator: the least that reading can take.
fn visit_separators(text: &str) -> usize {
    let bytes = text.as_bytes();
    let fields: usize = memchr::memchr3_iter(b'|', b'^', b'\r', bytes).sum();
    fields + memchr::memchr2_iter(b'~', b'&', bytes).sum::<usize>()
}

/// The best of each in microseconds, and the median ratio; measured in turn, so that a neighbour's load hits both.
fn against(subject: impl Fn(), floor: impl Fn()) -> (f64, f64, f64) {
    let calls = |call: &dyn Fn()| {
        let began = Instant::now();
        call();
        (2000.0 / micros(began)).clamp(1.0, 10_000.0) as u32
    };
    let time = |call: &dyn Fn(), calls: u32| {
        let began = Instant::now();
        (0..calls).for_each(|_| call());
        micros(began) / f64::from(calls)
    };
    subject();
    floor();
    let (many, floor_many) = (calls(&subject), calls(&floor));
    let mut best = (f64::MAX, f64::MAX);
    let mut ratios: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let (one, other) = (time(&subject, many), time(&floor, floor_many));
            best = (best.0.min(one), best.1.min(other));
            one / other
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    (best.0, best.1, ratios[ROUNDS / 2])
}

fn micros(began: Instant) -> f64 {
    began.elapsed().as_nanos() as f64 / 1e3
}

fn messages() -> [(&'static str, String); 5] {
    let admit = "MSH|^~\\&|ADTSYS|GENHOSP|PONS|HIE|20240301101500+0100||ADT^A01^ADT_A01|TEST000001|P|2.5.1|||AL|NE|DEU|UNICODE UTF-8\r\
        EVN|A01|20240301101400|||7001^TEST^CLERK^^^^^^GENHOSP|20240301101000\r\
        PID|1||TEST4711^^^GENHOSP&2.999.1&ISO^MR~TEST9000^^^NATID&2.999.2&ISO^NI||TEST^JANE^Q^^^^L~TEST^JANIE^^^^^N||19700131|F||\
        2106-3^White^HL70005|1 TEST STREET^APT 2^TESTTOWN^TS^12345^USA^H^^001||^PRN^PH^^1^555^5550100~^NET^Internet^jane@test.invalid|\
        ^WPN^PH^^1^555^5550101|en^English^ISO639|M^Married^HL70002|CAT^Catholic^HL70006|TESTACC1^^^GENHOSP^AN|||||TESTTOWN|N|1\r\
        NK1|1|TEST^JOHN^^^^^L|SPO^Spouse^HL70063|1 TEST STREET^^TESTTOWN^TS^12345^USA|^PRN^PH^^1^555^5550102\r\
        PV1|1|I|WARD1^101^A^GENHOSP^^N^B1^2|U|||1001^TEST^DOCTOR^A^^DR^MD^^GENHOSP^L|1002^TEST^REFERRER^^^^MD^^GENHOSP^L||MED||||1|||\
        1001^TEST^DOCTOR^A^^DR^MD^^GENHOSP^L|IP|TESTV1^^^GENHOSP^VN|SELF|||||||||||||||||||GENHOSP|||||20240301101000\r\
        PV2||PRIV^Private^L|CHEST PAIN^Chest pain^L\r\
        AL1|1|DA^Drug allergy^HL70127|PCN^Penicillin^L|MO^Moderate^HL70128|RASH|20100101\r\
        DG1|1||I20.0^Unstable angina^I10||20240301|A\r";
    let mut result = String::from(
        "MSH|^~\\&|LAB|GENLAB|PONS|HIE|20240301120000+0100||ORU^R01^ORU_R01|TEST000002|P|2.5.1\r\
        PID|1||TEST4711^^^GENHOSP&2.999.1&ISO^MR||TEST^JANE^Q||19700131|F\r\
        ORC|RE|TESTP1^PLACER|TESTF1^LAB||CM\r\
        OBR|1|TESTP1^PLACER|TESTF1^LAB|24331-1^Lipid panel^LN|||20240301101500|||||||||1001^TEST^DOCTOR^A||||||20240301115500||LAB|F\r",
    );
    for n in 1..=20 {
        let _ = write!(
            result,
            "OBX|{n}|NM|718-7^Hemoglobin [Mass/volume] in Blood^LN^HGB^Hemoglobin^L|{n}|13.{n}|g/dL^gram per deciliter^UCUM\
            |12.0-16.0|N|||F|||20240301101500+0100||1003^TEST^TECH||ANALYZER1^LAB|20240301113000\r"
        );
    }
    let head = "MSH|^~\\&|A|B|C|D|20240301||ORU^R01|1|P|2.5.1\rOBX|1|ED|||";
    [
        ("ADT^A01", admit.to_owned()),
        ("ORU^R01 with 20 OBX", result),
        ("10 MB in OBX-5", format!("{head}^APPLICATION^PDF^Base64^{}\r", "VGVzdA".repeat(1_750_000))),
        ("10 MB of ^", format!("{head}{}\r", "^".repeat(10 << 20))),
        ("10 MB of a^", format!("{head}{}\r", "a^".repeat(5 << 20))),
    ]
}
