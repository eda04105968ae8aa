//! Invented patients and their messages: the same seed gives the same bytes.
//!
//! Every message carries a [`Marker`] (run, patient, place in the patient's own sequence) in fields that survive mapping,
//! so that a subscriber's log alone tells whether something is missing or out of order. Every patient's values hold a
//! string that occurs nowhere else, so that a search of the logs for it proves that no value was logged.

use std::fmt::Write as _;

/// A small, seeded source of numbers (splitmix64): good enough to vary messages and to pick moments, never for secrets.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is above 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

/// What kind of message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// ADT^A01, an admission, some 1 KB.
    Admit,
    /// ADT^A08, an update.
    Update,
    /// ADT^A03, a discharge.
    Discharge,
    /// ORU^R01 with 20 OBX, 3.5 KB.
    Result,
}

impl Kind {
    /// The topic of the event that it causes, if it causes one by itself.
    pub fn topic(self) -> Option<&'static str> {
        match self {
            Kind::Admit => Some("encounter-start"),
            Kind::Discharge => Some("encounter-end"),
            Kind::Result => Some("result-final"),
            Kind::Update => None,
        }
    }
}

/// Which message of which patient: `Q<run><patient>N<sequence>Z`, 20 letters and digits, the most that MSH-10 holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Marker {
    /// The patient, from 0; below a million.
    pub patient: u32,
    /// The place in the patient's own sequence, from 1; below ten million.
    pub sequence: u32,
}

/// The name of a run: four lower case letters or digits, so that two runs on one database are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run([u8; 4]);

impl Run {
    /// A run named by a number.
    pub fn new(number: u64) -> Run {
        const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        let mut rng = Rng::new(number);
        Run([(); 4].map(|()| *rng.pick(DIGITS)))
    }

    /// A run that no other has the name of, most likely: named by process and time.
    pub fn fresh() -> Run {
        Run::new(uuid::Uuid::now_v7().as_u128() as u64)
    }

    /// Its four characters.
    pub fn name(&self) -> &str {
        std::str::from_utf8(&self.0).expect("made of ASCII")
    }

    /// The text of a marker.
    pub fn mark(&self, marker: Marker) -> String {
        format!("Q{}{:06}N{:07}Z", self.name(), marker.patient, marker.sequence)
    }

    /// The newest marker of this run in a text: the one of the message that made it, as a patient's earlier ones may still
    /// stand in what was merged. `None` if there is none.
    pub fn newest(&self, text: &[u8]) -> Option<Marker> {
        self.markers(text).max_by_key(|marker| marker.sequence)
    }

    /// Every marker of this run in a text.
    pub fn markers<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = Marker> + 'a {
        let start = [b"Q".as_slice(), &self.0].concat();
        let finder = memchr::memmem::Finder::new(&start).into_owned();
        let mut at = 0;
        std::iter::from_fn(move || {
            while let Some(found) = finder.find(&text[at..]) {
                let begin = at + found;
                at = begin + 1;
                if let Some(marker) = text.get(begin + 5..begin + 20).and_then(read_marker) {
                    return Some(marker);
                }
            }
            None
        })
    }
}

fn read_marker(text: &[u8]) -> Option<Marker> {
    let text = std::str::from_utf8(text).ok()?;
    let (patient, rest) = text.split_at_checked(6)?;
    let sequence = rest.strip_prefix('N')?.strip_suffix('Z')?;
    Some(Marker { patient: patient.parse().ok()?, sequence: sequence.parse().ok()? })
}

/// A message as sent.
#[derive(Clone, Debug)]
pub struct Generated {
    /// Which it is.
    pub marker: Marker,
    /// Its kind.
    pub kind: Kind,
    /// MSH-10, the marker's text.
    pub control_id: String,
    /// The message, segments ended by CR, without its frame.
    pub bytes: Vec<u8>,
}

/// The patients of a run and where each stands in its sequence.
#[derive(Clone, Debug)]
pub struct Population {
    run: Run,
    seed: u64,
    next: Vec<u32>,
    visit: Vec<u32>,
}

impl Population {
    /// So many patients, none with a message yet.
    pub fn new(run: Run, seed: u64, patients: u32) -> Population {
        Population { run, seed, next: vec![1; patients as usize], visit: vec![0; patients as usize] }
    }

    /// The run.
    pub fn run(&self) -> Run {
        self.run
    }

    /// How many patients there are.
    pub fn patients(&self) -> u32 {
        self.next.len() as u32
    }

    /// Strings that stand in the patients' values and nowhere else: none may be found in a log.
    pub fn canaries(&self) -> Vec<String> {
        (0..self.patients())
            .flat_map(|patient| {
                let person = Person::of(self.run, self.seed, patient);
                [person.family, person.given, person.mrn, person.street, person.phone]
            })
            .collect()
    }

    /// The next message of a patient.
    pub fn message(&mut self, kind: Kind, patient: u32) -> Generated {
        let at = patient as usize;
        let marker = Marker { patient, sequence: self.next[at] };
        self.next[at] += 1;
        if kind == Kind::Admit || self.visit[at] == 0 {
            self.visit[at] += 1;
        }
        let person = Person::of(self.run, self.seed, patient);
        let mut rng = Rng::new(self.seed ^ (u64::from(patient) << 32) ^ u64::from(marker.sequence));
        let control_id = self.run.mark(marker);
        let visit = format!("V{}{patient:06}-{}", self.run.name(), self.visit[at]);
        let text = match kind {
            Kind::Result => result(&person, &control_id, &visit, &mut rng),
            Kind::Admit => movement("A01", &person, &control_id, &visit, &mut rng),
            Kind::Update => movement("A08", &person, &control_id, &visit, &mut rng),
            Kind::Discharge => movement("A03", &person, &control_id, &visit, &mut rng),
        };
        Generated { marker, kind, control_id, bytes: text.into_bytes() }
    }

    /// Somebody else has sent that one, an admission: the patient's next one comes after it.
    pub fn pass(&mut self, admission: Marker) {
        let at = admission.patient as usize;
        self.next[at] = self.next[at].max(admission.sequence + 1);
        self.visit[at] += 1;
    }

    /// The kind that a patient's life brings next: admitted, some results and updates, discharged, and again.
    pub fn next_kind(&self, patient: u32) -> Kind {
        const STAY: [Kind; 6] =
            [Kind::Admit, Kind::Result, Kind::Update, Kind::Result, Kind::Result, Kind::Discharge];
        STAY[(self.next[patient as usize] as usize - 1) % STAY.len()]
    }
}

/// What is invented about a patient.
struct Person {
    mrn: String,
    family: String,
    given: String,
    street: String,
    phone: String,
    born: String,
    sex: char,
}

impl Person {
    fn of(run: Run, seed: u64, patient: u32) -> Person {
        let mut rng = Rng::new(seed ^ 0x5EED ^ u64::from(patient));
        let unlikely = letters(patient);
        let run = run.name();
        Person {
            mrn: format!("TEST{run}{patient:06}"),
            family: format!("TESTXQ{unlikely}KANARI"),
            given: format!("JANEVW{unlikely}"),
            street: format!("{} ZZYX {unlikely} STREET", 1 + rng.below(99)),
            phone: format!("555-0{:02}-{patient:07}", rng.below(100)),
            born: format!("{}{:02}{:02}", 1930 + rng.below(80), 1 + rng.below(12), 1 + rng.below(28)),
            sex: *rng.pick(&['F', 'M']),
        }
    }
}

/// A number in letters, at least four of them.
fn letters(mut number: u32) -> String {
    let mut text = String::new();
    while number > 0 || text.len() < 4 {
        text.push(char::from(b'A' + (number % 26) as u8));
        number /= 26;
    }
    text
}

/// A moment in 2026, later for a later message of the same patient.
fn moment(control_id: &str) -> String {
    let sequence: u32 = control_id[12..19].parse().expect("a control id is a marker");
    let (minute, second) = (sequence / 60, sequence % 60);
    let (hour, minute) = (minute / 60, minute % 60);
    let (day, hour) = (hour / 24, hour % 24);
    format!("2026{:02}{:02}{hour:02}{minute:02}{second:02}+0100", 1 + day / 28 % 12, 1 + day % 28)
}

fn header(kind: &str, structure: &str, control_id: &str) -> String {
    let at = moment(control_id);
    format!(
        "MSH|^~\\&|ADT1|GENHOSP|PONS|HIE|{at}||{kind}^{structure}|{control_id}|P|2.5.1|||AL|NE|||UNICODE UTF-8\r"
    )
}

fn patient_segment(person: &Person) -> String {
    let Person { mrn, family, given, street, phone, born, sex } = person;
    format!(
        "PID|1||{mrn}^^^GENHOSP^MR||{family}^{given}^Q^^^^L||{born}|{sex}||2106-3^White^HL70005|{street}^^Testville^ON^K1A 0B1^CAN^H||\
         ^PRN^PH^^^^{phone}||eng^English^ISO6392|M^Married^HL70002||||||||||||||N\r"
    )
}

fn visit_segment(class: char, visit: &str, control_id: &str, room: u64, discharged: bool) -> String {
    let admitted = "20251231080000+0100";
    let until = if discharged { moment(control_id) } else { String::new() };
    format!(
        "PV1|1|{class}|WEST^{room}^A^GENHOSP||||1001^TESTDOC^ALAN^^^DR^^^GENHOSP^L^^^EI|1002^TESTREF^BETH^^^DR^^^GENHOSP^L^^^EI||MED||||7|||\
         1001^TESTDOC^ALAN^^^DR^^^GENHOSP^L^^^EI|IP|{visit}^^^GENHOSP^VN|||||||||||||||||{}||||||||{admitted}|{until}|||||{control_id}^^^GENHOSP^VN\r",
        if discharged { "01" } else { "" }
    )
}

fn movement(trigger: &str, person: &Person, control_id: &str, visit: &str, rng: &mut Rng) -> String {
    let mut text =
        header(&format!("ADT^{trigger}"), if trigger == "A03" { "ADT_A03" } else { "ADT_A01" }, control_id);
    let at = moment(control_id);
    let _ = write!(text, "EVN|{trigger}|{at}|||1001^TESTDOC^ALAN\r");
    text.push_str(&patient_segment(person));
    let _ = write!(
        text,
        "NK1|1|{}^KIN^^^^^L|SPO^Spouse^HL70063|{}^^Testville^ON^K1A 0B1^CAN|^PRN^PH^^^^{}\r",
        person.family, person.street, person.phone
    );
    text.push_str(&visit_segment('I', visit, control_id, 100 + rng.below(400), trigger == "A03"));
    let code =
        rng.pick(&["I10^Essential hypertension^I10", "J18.9^Pneumonia^I10", "E11.9^Type 2 diabetes^I10"]);
    if trigger != "A03" {
        let allergy = rng.pick(&["70618^Penicillin^RXNORM", "1191^Aspirin^RXNORM", "2670^Codeine^RXNORM"]);
        let _ = write!(text, "AL1|1|DA|{allergy}|MO|Hives|20250101\r");
    }
    let _ = write!(text, "DG1|1||{code}||{at}|A\r");
    text
}

/// The twenty observations of a panel: LOINC code, name, unit, reference range, about how much.
const PANEL: [(&str, &str, &str, &str, u64); 20] = [
    ("718-7", "Hemoglobin", "g/L", "120-160", 140),
    ("4544-3", "Hematocrit", "%", "36-46", 41),
    ("789-8", "Erythrocytes", "10*12/L", "3.8-5.2", 4),
    ("6690-2", "Leukocytes", "10*9/L", "4.0-11.0", 7),
    ("777-3", "Platelets", "10*9/L", "150-400", 250),
    ("787-2", "MCV", "fL", "80-100", 90),
    ("785-6", "MCH", "pg", "27-33", 30),
    ("786-4", "MCHC", "g/L", "320-360", 340),
    ("2951-2", "Sodium", "mmol/L", "135-145", 140),
    ("2823-3", "Potassium", "mmol/L", "3.5-5.1", 4),
    ("2075-0", "Chloride", "mmol/L", "98-107", 102),
    ("1963-8", "Bicarbonate", "mmol/L", "22-29", 25),
    ("3094-0", "Urea nitrogen", "mmol/L", "2.5-7.1", 5),
    ("2160-0", "Creatinine", "umol/L", "50-100", 75),
    ("2345-7", "Glucose", "mmol/L", "3.9-6.1", 5),
    ("17861-6", "Calcium", "mmol/L", "2.15-2.55", 2),
    ("2885-2", "Protein", "g/L", "60-80", 70),
    ("1751-7", "Albumin", "g/L", "35-50", 42),
    ("1742-6", "ALT", "U/L", "7-56", 25),
    ("1920-8", "AST", "U/L", "10-40", 22),
];

fn result(person: &Person, control_id: &str, visit: &str, rng: &mut Rng) -> String {
    let at = moment(control_id);
    let mut text = header("ORU^R01", "ORU_R01", control_id);
    text.push_str(&patient_segment(person));
    text.push_str(&visit_segment('I', visit, control_id, 100, false));
    let doctor = "1001^TESTDOC^ALAN^^^DR^^^GENHOSP^L^^^EI";
    let _ = write!(text, "ORC|RE|P{control_id}^GENHOSP|{control_id}^LAB||CM||||{at}|||{doctor}\r");
    let _ = write!(
        text,
        "OBR|1|P{control_id}^GENHOSP|{control_id}^LAB|58410-2^CBC and chemistry panel^LN|||{at}|||||||||{doctor}||||||{at}||LAB|F\r"
    );
    for (index, (code, name, unit, range, about)) in PANEL.iter().enumerate() {
        let value = about * (80 + rng.below(40)) / 100;
        let digits = rng.below(100);
        let flag = rng.pick(&["N", "N", "N", "H", "L"]);
        let _ = write!(
            text,
            "OBX|{}|NM|{code}^{name}^LN^{}^{name} local^L||{value}.{digits:02}|{unit}^{unit}^UCUM|{range}|{flag}^^HL70078|||F|||{at}||||AUTO1\r",
            index + 1,
            1000 + index
        );
    }
    text.push_str("NTE|1|L|Specimen received in good condition, no hemolysis seen.\r");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_seed_does_not() {
        let make = |seed| {
            let mut population = Population::new(Run::new(7), seed, 3);
            (0..12)
                .map(|n| {
                    let kind = population.next_kind(n % 3);
                    population.message(kind, n % 3).bytes
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
    }

    #[test]
    fn a_marker_is_found_in_its_message_and_in_text_around_it() {
        let run = Run::new(3);
        let mut population = Population::new(run, 9, 2);
        for kind in [Kind::Admit, Kind::Update, Kind::Result, Kind::Discharge] {
            let sent = population.message(kind, 1);
            assert_eq!(sent.control_id.len(), 20, "MSH-10 holds 20 characters in 2.5.1");
            assert_eq!(run.newest(&sent.bytes), Some(sent.marker));
        }
        assert_eq!(run.newest(b"Q nothing Q here"), None);
        assert_eq!(Run::new(4).newest(&population.message(Kind::Admit, 0).bytes), None, "another run's");
        let two = format!(
            "{} and Q{} and {}",
            run.mark(Marker { patient: 1, sequence: 12 }),
            run.name(),
            run.mark(Marker { patient: 1, sequence: 9 })
        );
        assert_eq!(run.newest(two.as_bytes()), Some(Marker { patient: 1, sequence: 12 }));
    }

    #[test]
    fn messages_have_the_sizes_that_the_figures_are_about() {
        let mut population = Population::new(Run::new(1), 1, 1);
        let admit = population.message(Kind::Admit, 0).bytes.len();
        let result = population.message(Kind::Result, 0).bytes;
        assert!((900..1300).contains(&admit), "ADT A01 of {admit} bytes");
        assert!((3300..3800).contains(&result.len()), "ORU R01 of {} bytes", result.len());
        assert_eq!(memchr::memmem::find_iter(&result, b"\rOBX|").count(), 20);
    }

    #[test]
    fn canaries_stand_in_the_messages_and_are_unlike_each_other() {
        let mut population = Population::new(Run::new(1), 5, 40);
        let canaries = population.canaries();
        let text: Vec<u8> =
            (0..40).flat_map(|patient| population.message(Kind::Admit, patient).bytes).collect();
        for canary in &canaries {
            assert!(memchr::memmem::find(&text, canary.as_bytes()).is_some(), "{canary}");
        }
        let distinct: std::collections::BTreeSet<&String> = canaries.iter().collect();
        assert_eq!(distinct.len(), canaries.len());
    }

    #[test]
    fn the_fields_stand_where_hl7_wants_them() {
        let mut population = Population::new(Run::new(1), 5, 1);
        for kind in [Kind::Admit, Kind::Result, Kind::Discharge] {
            let sent = population.message(kind, 0);
            let text = String::from_utf8(sent.bytes).unwrap();
            let field = |segment: &str, number: usize| -> String {
                let line = text.split('\r').find(|line| line.starts_with(segment)).unwrap();
                line.split('|').nth(number).unwrap_or_default().to_owned()
            };
            assert!(field("PV1", 19).ends_with("^VN") && field("PV1", 18) == "IP", "PV1-18 and PV1-19");
            assert_eq!(field("PV1", 36), if kind == Kind::Discharge { "01" } else { "" }, "PV1-36");
            assert!(field("PV1", 44).starts_with("2025"), "PV1-44");
            assert_eq!(field("PV1", 45).is_empty(), kind != Kind::Discharge, "PV1-45");
            assert!(field("PV1", 50).starts_with(&sent.control_id), "PV1-50");
            assert_eq!(field("PID", 30), "N", "PID-30");
            if kind == Kind::Result {
                assert!(field("OBR", 3).starts_with(&sent.control_id) && field("OBR", 25) == "F");
                assert!(field("OBX", 11) == "F" && field("OBX", 14).starts_with("2026"));
                assert!(field("ORC", 12).starts_with("1001^"));
            }
        }
    }

    #[test]
    fn a_message_is_made_of_segments_ended_by_carriage_returns() {
        let mut population = Population::new(Run::new(1), 5, 1);
        for kind in [Kind::Admit, Kind::Result, Kind::Update, Kind::Discharge] {
            let text = String::from_utf8(population.message(kind, 0).bytes).unwrap();
            assert!(
                text.starts_with("MSH|^~\\&|ADT1|GENHOSP|") && text.ends_with('\r') && !text.contains('\n')
            );
            assert!(text.split('\r').filter(|line| !line.is_empty()).all(|line| line.as_bytes()[3] == b'|'));
        }
    }
}
