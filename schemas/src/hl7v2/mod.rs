//! HL7 v2: reading, addressing and writing messages of every version from 2.1 to 2.8.2.
