//! The messages of the story. Nobody in them exists.

/// The hospital admits a patient.
pub(super) const ADMISSION: &str = "MSH|^~\\&|EHR|TESTHOSPITAL|PONS|PONS|20260301081500||ADT^A01^ADT_A01|DEMO-1|P|2.5.1\r\
    EVN|A01|20260301081500\r\
    PID|1||TEST-1001^^^TESTHOSPITAL^MR||TEST^JANE^^^Dr.||19700131|F|||1 Teststraße^^Testburg^^12345^DEU||^PRN^PH^^49^30^555010\r\
    PV1|1|I|TEST-3A^12^1^TESTHOSPITAL||||TEST-77^HOUSE^TESTER|||MED||||||||INP|TEST-V1^^^TESTHOSPITAL^VN|||||||||||||||||||||||||20260301081500\r\
    DG1|1||E87.5^Hyperkalemia^I10|||A\r\
    IN1|1|TESTPLAN^Test plan|TEST-INS^^^TESTHOSPITAL|Test Insurance\r";

/// The ward orders a potassium.
pub(super) const ORDER: &str = "MSH|^~\\&|EHR|TESTHOSPITAL|PONS|PONS|20260301090000||ORM^O01^ORM_O01|DEMO-2|P|2.5.1\r\
    PID|1||TEST-1001^^^TESTHOSPITAL^MR||TEST^JANE\r\
    PV1|1|I|TEST-3A^12^1^TESTHOSPITAL||||||||||||||||TEST-V1^^^TESTHOSPITAL^VN\r\
    ORC|NW|TEST-O1^TESTHOSPITAL||||||^^^20260301090000||||TEST-77^HOUSE^TESTER\r\
    OBR|1|TEST-O1^TESTHOSPITAL||2823-3^Potassium [Moles/volume] in Serum or Plasma^LN|||20260301090000\r";

/// The lab answers.
pub(super) const RESULT: &str = "MSH|^~\\&|LIS|TESTLAB|PONS|PONS|20260301103000||ORU^R01^ORU_R01|DEMO-3|P|2.5.1\r\
    PID|1||TEST-1001^^^TESTHOSPITAL^MR||TEST^JANE\r\
    ORC|RE|TEST-O1^TESTHOSPITAL|TEST-F1^TESTLAB\r\
    OBR|1|TEST-O1^TESTHOSPITAL|TEST-F1^TESTLAB|2823-3^Potassium [Moles/volume] in Serum or Plasma^LN|||20260301091500|||||||||||||||20260301103000||LAB|F\r\
    OBX|1|NM|2823-3^Potassium [Moles/volume] in Serum or Plasma^LN||6.10|mmol/L^^UCUM|3.5-5.1|H|||F|||20260301091500\r\
    NTE|1||Hemolysis excluded.\r";

/// The hospital discharges her.
pub(super) const DISCHARGE: &str = "MSH|^~\\&|EHR|TESTHOSPITAL|PONS|PONS|20260304110000||ADT^A03^ADT_A03|DEMO-4|P|2.5.1\r\
    EVN|A03|20260304110000\r\
    PID|1||TEST-1001^^^TESTHOSPITAL^MR||TEST^JANE^^^Dr.||19700131|F\r\
    PV1|1|I|TEST-3A^12^1^TESTHOSPITAL||||TEST-77^HOUSE^TESTER|||MED||||||||INP|TEST-V1^^^TESTHOSPITAL^VN|||||||||||||||||01||||||||20260301081500|20260304110000\r";
