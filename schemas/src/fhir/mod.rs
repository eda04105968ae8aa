//! FHIR R4: its definitions as compact data, and what is checked against them.
