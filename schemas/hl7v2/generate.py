#!/usr/bin/env python3
"""Writes segments.txt, datatypes.txt and structures.txt: the HL7 v2 definitions that the crate `schemas` reads.

    python3 -m venv venv && venv/bin/pip install hl7apy==1.3.5
    npm install hl7-dictionary@1.0.1
    venv/bin/python schemas/hl7v2/generate.py node_modules/hl7-dictionary > report.txt

Facts only: codes, names, types, cardinalities, table numbers. What the two sources disagree on is printed; SOURCE.md
says what was chosen and why. The formats are described at the head of each file written.
"""
import importlib
import json
import pathlib
import re
import subprocess
import sys
from collections import Counter, defaultdict

HERE = pathlib.Path(__file__).resolve().parent
VERSIONS = ["2.1", "2.2", "2.3", "2.3.1", "2.4", "2.5", "2.5.1", "2.6", "2.7", "2.7.1", "2.8", "2.8.1", "2.8.2"]
# hl7apy has no 2.7.1. hl7-dictionary has both and lists the same facts for them, so 2.7 stands for 2.7.1.
STANDS_FOR = {"2.7.1": "2.7"}
ANY = "ANYHL7SEGMENT"


def note(*parts):
    print(*parts)


# ---- reading the two sources ------------------------------------------------------------------------------------


def read_hl7apy(version):
    name = "hl7apy.v" + STANDS_FOR.get(version, version).replace(".", "_")
    part = lambda what: importlib.import_module(f"{name}.{what}")
    segments = {}
    for segment, definition in part("segments").SEGMENTS.items():
        if segment == ANY:
            continue
        if not isinstance(definition[0], str):  # 2.1 has ORO without its kind
            definition = ("sequence", definition)
        fields = {}
        for field, (_, _, datatype, text, table, *_), (low, high), _ in definition[1] if len(definition) > 1 else ():
            fields[int(field.split("_")[1])] = Field(datatype, low, high, table_number(table), None, text)
        segments[segment] = fields
    datatypes = {}
    for datatype, components in part("datatypes").DATATYPES_STRUCTS.items():
        datatypes[datatype] = {
            int(component.rsplit("_", 1)[1]): Field(kind, low, high, table_number(table), None, text)
            for component, (_, _, kind, text, table, *_), (low, high), _ in components
        }
    groups = part("groups").GROUPS

    def tree(definition, root):
        nodes = []
        for child, _, (low, high), kind in definition[1]:
            if kind == "SEG":
                nodes.append(Node(child, low, high))
            else:
                short = child[len(root) + 1:] if child.startswith(root + "_") else child
                nodes.append(Node(short, low, high, groups[child][0] == "choice", tree(groups[child], root)))
        return nodes

    structures = {name: tree(definition, name) for name, definition in part("messages").MESSAGES.items()}
    return segments, datatypes, structures


def read_dictionary(folder):
    script = f"process.stdout.write(JSON.stringify(require({json.dumps(str(folder))})))"
    everything = json.loads(subprocess.run(["node", "-e", script], check=True, capture_output=True).stdout)
    versions = {}
    for version, found in everything["definitions"].items():
        field = lambda f: Field(f["datatype"].replace("VARIES", "varies"), int(f.get("opt") == 2), f.get("rep") or -1,
                                f.get("table"), f.get("len"), f["desc"])
        segments = {n: {i: field(f) for i, f in enumerate(s["fields"], 1)} for n, s in found["segments"].items()}
        datatypes = {n: {i: field(f) for i, f in enumerate(s["subfields"], 1)} for n, s in found["fields"].items()}
        titles = {n: s["desc"] for n, s in found["segments"].items()}

        def tree(nodes):
            made = []
            for n in nodes:
                high = n["max"] or -1
                if "compounds" in n:
                    made.append(Node("CHOICE", n["min"], high, True, tree(n["compounds"])))
                else:
                    made.append(Node(n["name"], n["min"], high, False, tree(n["children"]) if "children" in n else None))
            return made

        structures = {n: tree(m["segments"]["segments"]) for n, m in found["messages"].items()}
        versions[version] = (segments, datatypes, structures, titles)
    events = {}  # (code, trigger) -> structure, from table 0354
    for structure, text in everything["tables"]["354"]["values"].items():
        for trigger in re.findall(r"\b[A-Z][A-Z0-9]{2}\b", text):
            events[structure.split("_")[0], trigger] = structure
    return versions, events


class Field:
    def __init__(self, datatype, low, high, table, length, text):
        self.datatype, self.low, self.high, self.table, self.length, self.text = datatype, low, high, table, length, text
        self.withdrawn = datatype in (None, "WD") or high == 0

    def copy(self, **changes):
        made = Field(self.datatype, self.low, self.high, self.table, self.length, self.text)
        made.withdrawn = self.withdrawn
        for key, value in changes.items():
            setattr(made, key, value)
        return made


class Node:
    def __init__(self, name, low, high, choice=False, children=None):
        self.name, self.low, self.high, self.choice, self.children, self.alias = name, low, high, choice, children, None

    def clone(self):
        made = Node(self.name, self.low, self.high, self.choice, clone(self.children))
        made.alias = self.alias
        return made


def clone(nodes):
    return None if nodes is None else [n.clone() for n in nodes]


def table_number(text):
    """`HL70001` -> 1. HL79999 is the source's "no table named"."""
    digits = text[3:] if text else ""
    return int(digits) if digits.isdigit() and digits != "9999" else None


# ---- fields and components --------------------------------------------------------------------------------------

# hl7apy invents these names for a type that may not hold the full one inside another; the standard's name is the base.
BASE_TYPES = {"CQ_SIMPLE": "CQ", "CQ_QUANTITY": "CQ", "DR_SIMPLE": "DR", "CN_SIMPLE": "CN", "CN_PERSON": "CN",
              "CK_ACCOUNT_NO": "CK", "CM_RI": "RI", "CM_RANGE_SIMPLE": "CM_RANGE", "TX_CHALLENGE": "TX"}


def base_type(datatype):
    return BASE_TYPES.get(datatype, datatype)


def heal(by_version, dictionary, which):
    """Fills what one source lacks: lengths, tables, withdrawn fields, numbering gaps."""
    last = defaultdict(dict)  # segment -> field -> the latest definition that was in use
    for version in VERSIONS:
        mine, theirs = by_version[version][which], dictionary.get(version, ({}, {}))[which]
        for name in sorted(set(theirs) - set(mine)):
            if theirs[name] and base_type(name) == name and name not in ("varies", "CM_CCP", "CM_CD_ELECTRODE", "CM_OSD") \
                    and (which, name) != (0, "ED"):  # spare spellings, and a data type listed as a segment
                note(f"{version} {name}: only in hl7-dictionary, taken")
                mine[name] = theirs[name]
        for name, fields in mine.items():
            other = theirs.get(name, {})
            for number, field in fields.items():
                field.datatype = base_type(field.datatype)
                peer = other.get(number)
                if peer and not field.withdrawn:
                    if base_type(peer.datatype) != field.datatype and which == 0:
                        note(f"{version} {name}-{number}: hl7apy {field.datatype}, hl7-dictionary {peer.datatype}")
                    field.length = peer.length
                    if field.table is None:
                        field.table = peer.table
            heal_withdrawn(version, name, fields, other if which == 0 else {}, last[name])
            for number, field in fields.items():
                if not field.withdrawn:
                    last[name][number] = field
    if which == 0:  # reserved before use (2.5.1 OBX-20 to 22): the next version says what for
        for older, newer in reversed(list(zip(VERSIONS, VERSIONS[1:]))):
            for name, fields in by_version[older][0].items():
                for number, field in fields.items():
                    later = by_version[newer][0].get(name, {}).get(number)
                    if field.datatype in (None, "WD") and later:
                        fields[number] = later.copy(withdrawn=True, low=0)


# What 2.9 adds behind the last field of a segment, as far as HL7's v2-to-FHIR guide maps it: a message of 2.9 is read as 2.8.2.
LATER = {
    "MSH": {26: ("CWE", 1, "Security classification tag"), 27: ("CWE", -1, "Security handling instructions"),
            28: ("ST", -1, "Special access restriction instructions")},
    "NTE": {9: ("CWE", -1, "Coded comment")},
    "OBX": {31: ("ID", 1, "Action code"), 32: ("CWE", -1, "Observation value absent reason"),
            33: ("EIP", -1, "Observation related specimen identifier")},
    "ORC": {35: ("ID", 1, "Action code"), 36: ("DR", 1, "Order status date range"), 37: ("DTM", 1, "Order creation date/time"),
            38: ("EI", 1, "Filler order group number")},
    "PRT": {23: ("CWE", 1, "Preferred method of contact"), 24: ("PLN", -1, "Contact identifiers")},
    "TXA": {27: ("HD", 1, "Creating facility"), 28: ("CWE", 1, "Creating specialty")},
}


def add_later(by_version):
    for segment, fields in LATER.items():
        mine = by_version[VERSIONS[-1]][0][segment]
        for number, (datatype, high, text) in fields.items():
            assert number not in mine, (segment, number)
            mine[number] = Field(datatype, 0, high, None, None, text)


def heal_withdrawn(version, name, fields, other, last):
    """A withdrawn or skipped field keeps the type it last had: senders go on filling it."""
    top = max([*fields, *other, *last], default=0)
    for number in range(1, top + 1):
        field = fields.get(number)
        if field and not field.withdrawn:
            continue
        if number in last:
            fields[number] = last[number].copy(withdrawn=True, low=0)
        elif field is None and number in other:
            fields[number] = other[number].copy(withdrawn=True, low=0)
        elif field is None:
            note(f"{version} {name}-{number}: in neither source")
            continue
        if field is None:
            note(f"{version} {name}-{number}: not in hl7apy, taken as withdrawn ({fields[number].datatype})")


def title(text):
    """`DATE_TIME_OF_BIRTH` and `Date/time of birth` to one spelling: words in lower case, the first letter upper."""
    words = re.sub(r"[^A-Za-z0-9]+", " ", text or "").strip().lower()
    words = re.sub(r" s$", "s", re.sub(r" s (?=[a-z])", "'s ", words))
    return words[:1].upper() + words[1:]


def card(field):
    repeats = {1: "1", -1: "n"}.get(field.high, str(field.high))
    return ("w" if field.withdrawn else "r" if field.low else "o") + repeats


# ---- structures -------------------------------------------------------------------------------------------------

REAL_CHOICES = re.compile(r"^(CHOICE|ORDER_CHOICE|.*_SUPPGRP|.*_OBJECT)$")
GROUP_NAMES = {  # where most versions' name is not the one of HL7's newer texts and of the v2-to-FHIR guide
    ("VXU_V04", "PATIENT"): "PATIENT_VISIT",
    ("ORL_O34", "SPMSAC_SUPPGRP2"): "SPECIMEN",
}
STRUCTURE_NAMES = {"ARD_A19": "ADR_A19"}


def heal_tree(nodes):
    """Choices of segments become alternatives at the level where they stand; other "choices" of hl7apy are sequences."""
    made = []
    for n in nodes:
        if n.children is not None:
            if not n.children:
                continue
            n.children = heal_tree(n.children)
            if n.choice and not REAL_CHOICES.match(n.name) and not all(c.children is None for c in n.children):
                n.choice = False
            if n.choice and not REAL_CHOICES.match(n.name) and n.name != "ORDER_DETAIL":
                n.choice = False
            if n.choice and len(n.children) == 1:
                made.append(Node(n.children[0].name, n.low, n.high))
                continue
        made.append(n)
    return made


def first_segment(node):
    return node.name if node.children is None else first_segment(node.children[0])


def same_names(by_version):
    """One name for a group over all versions: the most frequent, the newest at a tie."""
    names = defaultdict(Counter)

    def walk(structure, nodes, place, rank, act):
        seen = Counter()
        for n in nodes:
            if n.children is None or n.choice:
                continue
            seen[first_segment(n)] += 1
            here = place + (first_segment(n), seen[first_segment(n)])
            act(structure, here, n, rank)
            walk(structure, n.children, here, rank, act)

    def count(structure, place, node, rank):
        if "SUPPGRP" not in node.name:
            names[structure, place][node.name] += 1 + rank / 1000

    def rename(structure, place, node, _):
        found = names[structure, place]
        if found:
            node.name = max(found, key=found.get)
        node.name = GROUP_NAMES.get((structure, node.name), node.name)

    for act in (count, rename):
        for rank, version in enumerate(VERSIONS):
            for structure, nodes in by_version[version][2].items():
                walk(structure, nodes, (), rank, act)


ANCHORS = {"PID", "PV1"}  # what a ROL, ARV or PRT is said to follow, also where it is optional


def segments_of(nodes):
    found = set()
    for n in nodes:
        found |= {n.name} if n.children is None else segments_of(n.children)
    return found


def name_positions(nodes):
    """Names for a segment that stands more than once at one level: after its anchor, else by number."""
    places = defaultdict(list)
    for index, n in enumerate(nodes):
        if n.children is None:
            places[n.name].append(index)
        else:
            name_positions(n.children)
    for name, at in places.items():
        if len(at) < 2:
            continue
        anchors = []
        for index in at:
            before = [m.name for m in nodes[:index] if m.children is None and len(places[m.name]) == 1
                      and (m.low or m.name in ANCHORS)]
            anchors.append(before[-1] if before else None)
        anchored = None not in anchors and len(set(anchors)) == len(anchors)
        for count, index in enumerate(at):
            short = "ANY" if name == ANY else name
            nodes[index].alias = f"{short}_{anchors[count]}" if anchored else f"{short}_{count + 1}"
    siblings = [n.name for n in nodes if n.children is not None and not n.choice]
    assert len(siblings) == len(set(siblings)), siblings


def pair_up(name, nodes):
    """The two patients who exchange their beds (A17) are a group that repeats: the visit behind a PID is that patient's."""
    if name != "ADT_A17":
        return nodes
    at = [index for index, n in enumerate(nodes) if n.children is None and n.name == "PID"]
    if len(at) != 2:
        return nodes
    first, second = nodes[at[0]:at[1]], nodes[at[1]:]
    names = {n.name: n for n in second}
    if any(n.children is not None for n in nodes) or not set(names) <= {n.name for n in first}:
        return nodes
    for n in first:
        n.low = min(n.low, names[n.name].low) if n.name in names else 0
    return nodes[:at[0]] + [Node("PATIENT", 1, -1, False, first)]


def add_answer(mine):
    """What a registry of immunizations answers (RSP_K11 by query profile, as US registries do) is what a VXU says, for each person."""
    if "RSP_K11" not in mine or "VXU_V04" not in mine:
        return
    said = [n.clone() for n in mine["VXU_V04"] if n.name not in ("MSH", "SFT", "UAC")]
    at = next(index for index, n in enumerate(mine["RSP_K11"]) if n.name == "QPD") + 1
    mine["RSP_K11"].insert(at, Node("RESPONSE", 0, -1, False, said))


def render(nodes):
    parts = []
    for n in nodes:
        mark = {(1, 1): "", (0, 1): "?", (0, -1): "*", (1, -1): "+"}.get((n.low, n.high))
        if mark is None:
            mark = "?" if n.low == 0 and n.high == 1 else "*" if n.low == 0 else "+"
        if n.children is None:
            name = "ANY" if n.name == ANY else n.name
            parts.append((f"{n.alias}:" if n.alias else "") + name + mark)
        elif n.choice:
            parts.append("<" + "|".join(c.name for c in n.children) + ">" + mark)
        else:
            parts.append(f"{n.name}({render(n.children)}){mark}")
    return " ".join(parts).replace("<OBR|ANYHL7SEGMENT>", "<OBR|ANY>")


def structures(by_version, dictionary, table):
    for version in VERSIONS:
        mine = by_version[version][2]
        for wrong, right in STRUCTURE_NAMES.items():
            if wrong in mine:
                mine[right] = mine.pop(wrong)
        for name in mine:
            mine[name] = pair_up(name, heal_tree(mine[name]))
    for version in ("2.1", "2.2"):  # hl7apy flattens these; the other source has the groups and the alternatives
        for name in ("ORM_O01", "ORR_O02"):
            tree = clone(dictionary[version][2][name])
            for_choices(tree)
            by_version[version][2][name] = tree
    # The groups of 2.3 read 2.1 and 2.2 too, wherever they know every segment of the older structure.
    for version in ("2.1", "2.2"):
        mine, newer = by_version[version][2], by_version["2.3"][2]
        for name in sorted(mine):
            for target in dict.fromkeys([name, EARLY.get(name, name)]):
                if target in newer and segments_of(mine[name]) <= segments_of(newer[target]) | {"ORO", "RX1"}:
                    extra = sorted(segments_of(mine[name]) - segments_of(newer[target]))
                    del mine[name]
                    if target not in mine:
                        mine[target] = clone(newer[target])
                        if extra:
                            widen(mine[target], extra)
                    break
            else:
                note(f"{version} {name}: keeps its own shape")
    for version in VERSIONS:
        mine = by_version[version][2]
        for name in sorted(mine):
            target = table.get(tuple(name.split("_", 1)) if "_" in name else None)
            if target in mine and target != name and render(mine[name]) == render(mine[target]):
                del mine[name]  # such as SIU_S13: the same as SIU_S12, which is what MSH-9.3 says
            elif sum(n.name == "MSH" for n in mine[name]) > 1:
                note(f"{version} {name}: two messages in one, left out")
                del mine[name]
    same_names(by_version)
    for version in VERSIONS:
        for nodes in by_version[version][2].values():
            name_positions(nodes)
    return events_of(by_version, dictionary, table)


EARLY = {}  # filled by main: in 2.1 and 2.2 each trigger has a structure of its own


def for_choices(nodes):
    """In ORM and ORR the alternatives do not repeat: a second OBR is a second order."""
    for n in nodes:
        if n.choice:
            n.low, n.high = 1, 1
        elif n.children:
            for_choices(n.children)


def widen(nodes, extra):
    for n in nodes:
        if n.choice and n.children[0].name == "OBR":
            n.children += [Node(e, 1, 1) for e in extra]
        elif n.children:
            widen(n.children, extra)


def shape(nodes):
    return re.sub(r"[A-Z0-9_]+\(", "(", re.sub(r"[A-Z0-9_]+:", "", render(nodes)))


def events_of(by_version, dictionary, table):
    """(code, trigger) -> structure by version: named so, else table 0354, else the same shape, else a neighbour's."""
    found = {v: {} for v in VERSIONS}
    wanted = set(table) | {tuple(n.split("_", 1)) for d in dictionary.values() for n in d[2] if "_" in n}
    wanted |= {tuple(n.split("_", 1)) for v in VERSIONS for n in by_version[v][2] if "_" in n}
    for version in VERSIONS:
        mine = by_version[version][2]
        theirs = dictionary.get(version, ({}, {}, {}, {}))[2]
        shapes = {name: shape(nodes) for name, nodes in mine.items()}
        for code, trigger in sorted(wanted):
            name = f"{code}_{trigger}"
            if name in mine:
                found[version][code, trigger] = name
            elif table.get((code, trigger)) in mine and version not in ("2.3", "2.3.1"):
                found[version][code, trigger] = table[code, trigger]
            elif name in theirs:
                peer = shape(pair_up(name, heal_tree(clone(theirs[name]))))
                same = [n for n, s in shapes.items() if n.split("_")[0] == code and s == peer]
                if same:
                    found[version][code, trigger] = min(same)
                elif table.get((code, trigger)) in mine:
                    found[version][code, trigger] = table[code, trigger]
    for version in VERSIONS:
        at = VERSIONS.index(version)
        near = sorted((v for v in VERSIONS if v != version), key=lambda v: abs(VERSIONS.index(v) - at))
        for code, trigger in sorted(wanted):
            for other in near:
                name = found[other].get((code, trigger))
                if (code, trigger) not in found[version] and name in by_version[version][2]:
                    found[version][code, trigger] = name
                    break
    return found


# ---- writing ----------------------------------------------------------------------------------------------------


def runs(values):
    """[(version, text)] -> [(range, text)] with neighbours of equal text joined."""
    made = []
    for index, version in enumerate(VERSIONS):
        if version not in values:
            continue
        if made and made[-1][2] == index - 1 and made[-1][3] == values[version]:
            made[-1][2] = index
        else:
            made.append([index, None, index, values[version]])
    return [(VERSIONS[a] if a == b else f"{VERSIONS[a]}-{VERSIONS[b]}", text) for a, _, b, text in made]


def write_fields(path, head, by_version, which, titles):
    lines = list(head)
    for name in sorted({n for v in VERSIONS for n in by_version[v][which]} - set(BASE_TYPES)):
        lines.append(f"= {name} {titles.get(name, '')}".rstrip())
        top = max(max(by_version[v][which].get(name, {0: 0}), default=0) for v in VERSIONS)
        for number in range(1, top + 1):
            values, names = {}, {}
            for v in VERSIONS:
                field = by_version[v][which].get(name, {}).get(number)
                if field:
                    kind = field.datatype or "ST"
                    values[v] = f"{kind} {card(field)} {field.length or '-'} {field.table or '-'}"
                    names[v] = title(field.text)
            latest = next((names[v] for v in reversed(VERSIONS) if names.get(v)), "")
            for index, (span, text) in enumerate(runs(values)):
                lines.append(f"{number} {span} {text}" + (f" {latest}" if index == 0 else ""))
    path.write_text("\n".join(lines) + "\n")


def main():
    dictionary, table = read_dictionary(pathlib.Path(sys.argv[1]).resolve())
    by_version = {v: read_hl7apy(v) for v in VERSIONS}
    table["ORU", "R40"] = "ORU_R01"  # later than table 0354 as the source has it
    for code, trigger in table:
        EARLY[f"{code}_{trigger}"] = table[code, trigger]
    # What 2.3 calls ADT_A01 and ADT_A02 took more triggers than table 0354 of later versions gives them.
    EARLY.update({f"ADT_A{n:02}": "ADT_A01" for n in (5, 14, 28, 31)})
    EARLY.update({f"ADT_A{n:02}": "ADT_A02" for n in (21, 22, 23, 25, 26, 27, 29, 32, 33)})
    EARLY.update({"ADT_A15": "ADT_A09", "ADT_A37": "ADT_A24", "ORU_R03": "ORU_R01"})
    heal(by_version, dictionary, 0)
    heal(by_version, dictionary, 1)
    add_later(by_version)
    titles = {}
    for version in dictionary:
        titles.update({n: title(t) for n, t in dictionary[version][3].items()})
    write_fields(HERE / "segments.txt", [
        "# HL7 v2 segments, all versions. Written by generate.py; SOURCE.md names the sources and their licences.",
        "# `= PID title`, then one line a field and span of versions: number, versions, data type, o(ptional) r(equired)",
        "# or w(ithdrawn) with its repetitions (n: no bound), length, table, and once the name.",
    ], by_version, 0, titles)
    write_fields(HERE / "datatypes.txt", [
        "# HL7 v2 data types with components, all versions; as segments.txt. A type that is not here is primitive.",
    ], by_version, 1, {})
    events = structures(by_version, dictionary, table)
    for version in VERSIONS:
        add_answer(by_version[version][2])
    lines = [
        "# HL7 v2 message structures, all versions. Written by generate.py; SOURCE.md names the sources and their licences.",
        "# `= ADT_A01`, then one line a span of versions: the segments in order, ? * + as usual, NAME(...) a group, <A|B>",
        "# alternatives, ANY any segment, ROL_PID:ROL a position with a name of its own. `@ ADT A04 2.3-2.8.2 ADT_A01` says",
        "# which structure a trigger event has where it is not the one of its own name.",
    ]
    for name in sorted({n for v in VERSIONS for n in by_version[v][2]}):
        lines.append(f"= {name}")
        values = {v: render(by_version[v][2][name]) for v in VERSIONS if name in by_version[v][2]}
        lines += [f"{span} {text}" for span, text in runs(values)]
    for code, trigger in sorted({k for v in VERSIONS for k in events[v]}):
        values = {v: events[v][code, trigger] for v in VERSIONS if (code, trigger) in events[v]
                  and events[v][code, trigger] != f"{code}_{trigger}"}
        lines += [f"@ {code} {trigger} {span} {text}" for span, text in runs(values)]
    (HERE / "structures.txt").write_text("\n".join(lines) + "\n")


main()
