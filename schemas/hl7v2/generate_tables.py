#!/usr/bin/env python3
"""Writes tables.txt: the codes of HL7's tables, by which the crate `mappings` tells a code of a table from a site's own.

    npm install hl7-dictionary@1.0.1
    python3 schemas/hl7v2/generate_tables.py node_modules/hl7-dictionary v2-tables.xml

`v2-tables.xml` lies in org/hl7/fhir/r4/model/valueset of the Maven artifact ca.uhn.hapi.fhir:hapi-fhir-validation-resources-r4.
A code counts that any version had, or that HL7's v2-to-FHIR guide names (from mappings/table). Facts only: numbers and codes.
"""
import json
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as xml
from collections import defaultdict

HERE = pathlib.Path(__file__).resolve().parent
FHIR = "{http://hl7.org/fhir}"
SYSTEM = re.compile(r"http://terminology\.hl7\.org/CodeSystem/v2-(\d{4})(\|.*)?$")
# What stands for codes and is none: ranges and remarks.
NO_CODE = re.compile(r"\.\.|[\s(]|^$")
# What stands for more codes than can be listed: a table with such a thing is left out.
PATTERN = re.compile(r"<|xxx|nnn|zzz|^xID$")


def of_fhir(path, tables):
    for system in xml.parse(path).getroot().iter(FHIR + "CodeSystem"):
        named = SYSTEM.match(system.find(FHIR + "url").get("value"))
        if named:
            tables[named[1]].update(concept.find(FHIR + "code").get("value") for concept in system.iter(FHIR + "concept"))


def of_dictionary(path, tables):
    script = "console.log(JSON.stringify(require(process.argv[1])))"
    text = subprocess.run(["node", "-e", script, str(pathlib.Path(path).resolve())], check=True, capture_output=True).stdout
    dictionary = json.loads(text)
    for source in [dictionary, *dictionary["definitions"].values()]:
        for number, table in source.get("tables", {}).items():
            tables[number.zfill(4)].update(table.get("values", {}))


def of_guide(tables):
    for path in sorted((HERE.parent.parent / "mappings" / "table").glob("*.json")):
        for group in json.loads(path.read_text())["group"]:
            named = SYSTEM.match(group.get("source", ""))
            if named:
                tables[named[1]].update(element["code"] for element in group["element"])


def main():
    tables = defaultdict(set)
    of_fhir(sys.argv[2], tables)
    of_dictionary(sys.argv[1], tables)
    of_guide(tables)
    lines = ["# Number of a table, then its codes, parted by tabs. Written by generate_tables.py."]
    for number, codes in sorted(tables.items()):
        listed = not any(PATTERN.search(code) for code in codes)
        codes = sorted(code for code in codes if not NO_CODE.search(code))
        if codes and listed:
            lines.append("\t".join([number, *codes]))
    (HERE / "tables.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
