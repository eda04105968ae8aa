#!/usr/bin/env python3
"""Writes the ConceptMaps of this folder from the code system maps of HL7's v2-to-FHIR guide.

    mappings/table/generate.py DIR        DIR: the folder `codesystems` of the guide, with one CSV a table

A source code becomes one element; a code for which the guide names no target becomes `unmatched`, which is not the same
as a code that the table does not know. A code that the guide gives two targets has both, the first of which is taken. Target
codes without a source code serve only the way back and are left out, and so is a table that has nothing else. CORRECTIONS holds what the guide leaves open or gets wrong, each with its reason,
which stands in the ConceptMap as the comment of the target. The same input gives the same bytes.
"""

import csv
import glob
import json
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
FHIR = "http://hl7.org/fhir/"
V2 = "http://terminology.hl7.org/CodeSystem/v2-"
V3 = "http://terminology.hl7.org/CodeSystem/v3-"

# Names that read better than the guide's, spelled as the mappings use them.
NAMES = {
    "DegreeLicenseCertificate": "degree",
    "InterpretationCodes": "interpretation",
    "ObservationResultStatusCodesInterpretation": "observation-status",
    "OrderControlCode[ServiceRequest.status]": "order-control-status",
    "PatientClass[EncounterClass]": "encounter-class",
    "PatientClass[EncounterStatus]": "class-encounter-status",
    "ResultStatus[Non-Queries]": "report-status",
    "AllergySeverity[AllergyIntolerance.criticality]": "allergy-criticality",
    "AllergySeverity[AllergyIntolerance.criticality-original]": "allergy-severity-original",
    "AllergySeverity[AllergyIntolerance.reaction.severity]": "reaction-severity",
    "AllergenType[AllergyIntoleranceCategory]": "allergen-category",
    "AllergenType[AllergyIntoleranceOriginalCategory]": "allergen-category-original",
    "YesNoIndicator[AvailabilityStatus]": "specimen-availability",
    "Participation": "participation",
}

# The v2 table behind a map whose rows name none, or name it in another way.
SOURCES = {"MessageStructure": "0354", "ProcessingMode": "0207"}

UNMATCHED = None
OBS, REPORT, ENC = FHIR + "observation-status", FHIR + "diagnostic-report-status", FHIR + "encounter-status"
CONTACT, ORDER = FHIR + "contact-point-system", FHIR + "request-status"

# (map) -> code -> (target code or UNMATCHED, its system, its display, reason)
CORRECTIONS = {
    # status is 1..1 in FHIR, and the guide has no target for these result states.
    "observation-status": {
        "B": ("amended", OBS, "Amended", "an appended final report adds to what was final"),
        "I": ("registered", OBS, "Registered", "specimen in the laboratory, result pending"),
        "N": ("cancelled", OBS, "Cancelled", "not asked: the measurement was never started"),
        "O": ("registered", OBS, "Registered", "order detail only, there is no result"),
        "R": ("preliminary", OBS, "Preliminary", "entered, not verified"),
        "S": ("preliminary", OBS, "Preliminary", "partial result"),
        "U": ("final", OBS, "Final", "became final without being sent again"),
        "V": ("final", OBS, "Final", "a final result that was reviewed"),
    },
    "report-status": {
        "A": ("partial", REPORT, "Partial", "some, not all, results are there"),
        "M": ("preliminary", REPORT, "Preliminary", "corrected, and not final yet"),
        "N": ("registered", REPORT, "Registered", "procedure done, results pending"),
        "Y": ("unknown", REPORT, "Unknown", "an answer to a query: no such order"),
        "Z": ("unknown", REPORT, "Unknown", "an answer to a query: no such patient"),
    },
    "event-encounter-status": {
        "A04": ("in-progress", ENC, "In Progress",
                "the guide says planned; a registration (v2 chapter 3) tells that the patient has arrived"),
        "A08": (UNMATCHED, None, None,
                "the guide says unknown; an update says nothing about the state, so the message's other fields decide"),
        "A06": ("in-progress", ENC, "In Progress", "an outpatient became an inpatient"),
        "A07": ("in-progress", ENC, "In Progress", "an inpatient became an outpatient"),
        "A09": ("in-progress", ENC, "In Progress", "the patient leaves for another place, the visit goes on"),
        "A10": ("in-progress", ENC, "In Progress", "the patient arrives at another place, the visit goes on"),
        "A12": ("in-progress", ENC, "In Progress", "a transfer was cancelled, the visit goes on"),
        "A14": ("planned", ENC, "Planned", "pending admission"),
        "A15": ("in-progress", ENC, "In Progress", "pending transfer"),
        "A16": ("in-progress", ENC, "In Progress", "pending discharge"),
        "A21": ("onleave", ENC, "On Leave", "leave of absence"),
        "A22": ("in-progress", ENC, "In Progress", "back from a leave of absence"),
        "A25": ("in-progress", ENC, "In Progress", "a pending discharge was cancelled"),
        "A26": ("in-progress", ENC, "In Progress", "a pending transfer was cancelled"),
        "A27": ("cancelled", ENC, "Cancelled", "a pending admission was cancelled"),
        "A32": ("in-progress", ENC, "In Progress", "an arrival elsewhere was cancelled, the visit goes on"),
        "A33": ("in-progress", ENC, "In Progress", "a departure was cancelled, the visit goes on"),
        "A38": ("cancelled", ENC, "Cancelled", "a pre-admission was cancelled"),
        "A52": ("in-progress", ENC, "In Progress", "a leave of absence was cancelled"),
        "A53": ("onleave", ENC, "On Leave", "a return from leave was cancelled"),
        "A17": ("in-progress", ENC, "In Progress", "two patients in their beds exchange them"),
        "A23": ("entered-in-error", ENC, "Entered in Error", "the sender deleted the record of the visit"),
        **{event: (UNMATCHED, None, None, "says nothing about the state of the visit") for event in (
            "A18 A24 A28 A29 A30 A31 A34 A35 A36 A37 A39 A40 A41 A42 A43 A44 A45 A46 A47 A48 A49 A50 A51 A54 A55 A60 A61 A62").split()},
    },
    # contact-point-use `mobile` is not a system.
    "telecommunication-equipment-type": {
        "CP": ("phone", CONTACT, "Phone", "the guide names contact-point-use mobile, which is no system; the use says it"),
    },
    # HL7 table 0038 has A, the guide's map has not.
    "order-status": {
        "A": ("active", ORDER, "Active", "some, not all, results are there; missing in the guide"),
    },
    # The guide was written before v2.9.
    "administrative-sex": {
        "X": ("other", FHIR + "administrative-gender", "Other", "in HL7 table 0001 since v2.9"),
    },
}


def kebab(name):
    """`Event[EncounterStatus]` -> `event-encounter-status`."""
    if name in NAMES:
        return NAMES[name]
    words = re.sub(r"[^A-Za-z0-9]+", "-", name)
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1-\2", words)
    words = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1-\2", words)
    return words.strip("-").lower()


def rows(path):
    """(source code, text, v2 table, target code, display, target system) of each row with a source code."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        table = list(csv.reader(file))
    heads = [cell.strip() for cell in table[1]]
    target = [i for i, cell in enumerate(heads) if cell == "Code"][1]
    display = heads.index("Display")
    system = [i for i, cell in enumerate(heads) if cell == "Code System"][1]
    for row in table[2:]:
        row = [" ".join(cell.split()) for cell in row] + [""] * 12
        if row[0]:
            yield row[0], row[1], row[2], row[target], row[display], row[system]


def concept_map(name, id_, path):
    """The ConceptMap of one CSV, or nothing if it holds no source code."""
    fixes = dict(CORRECTIONS.get(id_, {}))
    source, groups, seen = SOURCES.get(name), {}, {}

    def add(code, text, target, system, shown, comment):
        element = seen[code]
        if element is None:
            element = seen[code] = {"code": code}
            if text:
                element["display"] = text
            groups.setdefault(system or "", []).append(element)
        if target:
            to = {"code": target}
            # SNOMED CT is named by code alone.
            if shown and "snomed" not in system:
                to["display"] = shown
            to["equivalence"] = "equivalent" if (code, f"{V2}{source}") == (target, system) else "relatedto"
        else:
            to = {"equivalence": "unmatched"}
        if comment:
            to["comment"] = comment
        element.setdefault("target", []).append(to)

    for code, text, table, target, shown, system in rows(path):
        if code in seen and (not target or system not in groups or code in CORRECTIONS.get(id_, {})):
            continue  # the same code a second time, without anything new to say
        seen.setdefault(code)
        if not source and (found := re.fullmatch(r"HL7?0?-?(\d{4})", table)):
            source = found[1]
        if code in fixes:
            target, system, shown, comment = fixes.pop(code)
            add(code, text, target, system, shown, comment)
        elif "://" in system or system.startswith("urn:"):
            add(code, text, target, system.strip(), shown, None)
        else:
            add(code, text, "", "", "", None)
    if not seen:
        return None
    for code, (target, system, shown, comment) in fixes.items():
        seen[code] = None
        add(code, "", target, system, shown, comment)
    # What has no target goes to the group of the first target system: FHIR wants no group without a target for it.
    none = groups.pop("", [])
    home = next(iter(groups), None)
    if home is None:
        groups[""] = none
    else:
        groups[home] += none
    return {
        "resourceType": "ConceptMap",
        "id": id_,
        "name": re.sub(r"[^A-Za-z0-9]", "", name),
        "status": "active",
        "sourceUri": f"{V2}{source}" if source else None,
        "group": [
            {"source": f"{V2}{source}", **({"target": system} if system else {}), "element": elements}
            for system, elements in groups.items()
        ],
    }


def write(map_):
    """One element a line, so that a diff shows codes."""
    head = {key: value for key, value in map_.items() if key != "group" and value}
    lines = ["{"]
    lines += [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}," for key, value in head.items()]
    lines.append('  "group": [')
    for g, group in enumerate(map_["group"]):
        lines.append("    {")
        lines += [f"      {json.dumps(key)}: {json.dumps(group[key])}," for key in ("source", "target") if key in group]
        lines.append('      "element": [')
        elements = [f"        {json.dumps(element, ensure_ascii=False)}" for element in group["element"]]
        lines.append(",\n".join(elements))
        lines.append("      ]")
        lines.append("    }" + ("," if g + 1 < len(map_["group"]) else ""))
    lines += ["  ]", "}"]
    with open(os.path.join(HERE, map_["id"] + ".json"), "w", encoding="utf-8", newline="\n") as file:
        file.write("\n".join(lines) + "\n")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    paths = sorted(glob.glob(os.path.join(glob.escape(sys.argv[1]), "*.csv")))
    if not paths:
        sys.exit(f"no CSV files under {sys.argv[1]}")
    made, empty = [], []
    for path in paths:
        name = re.fullmatch(r"HL7 Concept Map_ (.*) - \w+\.csv", os.path.basename(path))[1].strip()
        map_ = concept_map(name, kebab(name), path)
        (made if map_ else empty).append(kebab(name))
        if map_:
            write(map_)
    print(f"{len(made)} tables written; without a source code: {', '.join(empty)}")


if __name__ == "__main__":
    main()
