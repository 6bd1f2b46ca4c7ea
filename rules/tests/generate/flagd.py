"""flagd documents: INTEROP of the format, with fractional buckets computed by hashes.py.

With `node` and @openfeature/flagd-core (4) in a folder, `python3 flagd.py FOLDER` asks that evaluator every case of
fractional v2 and prints where it differs. Known: it hashes UTF-16 units, so `größe-🌊` falls elsewhere, and it does
not drop a first argument that is null, as flagd itself does.
"""

import json
import pathlib
import subprocess
import sys

import hashes as h
from corpus import File, code_default, error, js, success

SHAPES = {"circle": "round", "square": "four", "triangle": "three"}
USERS = ["user-1", "user-42", "alice", "bob", "größe-🌊", "carol", "dave", "erin"]
v = lambda path: {"var": path}


class Document(File):
    def __init__(self, name, description, fractional=None):
        super().__init__(name, description)
        self.document = {"description": description, "flagd": {"$schema": "https://flagd.dev/schema/v0/flags.json", "flags": {}}}
        if fractional:
            self.document["fractional"] = fractional
        self.metadata = {}
        self.flags = {}

    def add(self, key, variants, default, targeting=None, state="ENABLED", **more):
        flag = {"state": state, "variants": variants}
        if default != "absent":
            flag["defaultVariant"] = default
        if targeting is not None:
            flag["targeting"] = targeting
        flag.update(more)
        self.document["flagd"]["flags"][key] = flag
        self.flags[key] = flag

    def yes(self, key, variant, reason="TARGETING_MATCH"):
        meta = {**self.document["flagd"].get("metadata", {}), **self.flags[key].get("metadata", {})}
        return success(key, self.flags[key]["variants"][variant], variant, reason, meta)


def semantics():
    f = Document("flagd", "flagd's flag document: states, defaults, targeting, results, metadata")
    doc = f.document["flagd"]
    doc["metadata"] = {"flagSetId": "shop", "version": "v3"}
    doc["$evaluators"] = {"is-corp": {"ends_with": [v("email"), "@corp.example"]}, "shape": {"if": [v("round"), "circle", "square"]}}
    base = {"flagSetId": "shop", "version": "v3"}
    b = {"on": True, "off": False}
    f.add("static-bool", b, "on")
    f.case("a flag without targeting is STATIC", "static-bool", {}, f.yes("static-bool", "on", "STATIC"))
    f.add("empty-targeting", b, "on", {})
    f.case("empty targeting is no targeting", "empty-targeting", {}, f.yes("empty-targeting", "on", "STATIC"))
    f.add("disabled", b, "on", state="DISABLED")
    f.case("a disabled flag succeeds without a value", "disabled", {}, code_default("disabled", "DISABLED", base))
    f.add("disabled-targeting", b, "on", {"if": [True, "on"]}, state="DISABLED", metadata={"owner": "x"})
    f.case("a disabled flag's targeting is not asked and its metadata is given", "disabled-targeting", {}, code_default("disabled-targeting", "DISABLED", {**base, "owner": "x"}))
    f.add("no-default", b, "absent")
    f.case("a flag without default variant leaves the value to the caller, reason DEFAULT", "no-default", {}, code_default("no-default", "DEFAULT", base))
    f.add("null-default", b, None)
    f.case("a default variant null is none", "null-default", {}, code_default("null-default", "DEFAULT", base))
    f.add("no-default-targeting", b, "absent", {"if": [{"==": [v("x"), 1]}, "on"]})
    f.case("targeting that hits needs no default variant", "no-default-targeting", {"x": 1}, f.yes("no-default-targeting", "on"))
    f.case("targeting that gives null without default variant leaves the value to the caller", "no-default-targeting", {}, code_default("no-default-targeting", "DEFAULT", base))
    f.case("an unknown flag is not found", "unknown", {}, error("unknown", "FLAG_NOT_FOUND"), status=404)
    f.add("if", SHAPES, "circle", {"if": [{"==": [v("shape"), "s"]}, "square", {"==": [v("shape"), "t"]}, "triangle", None]})
    for x, variant, reason in [("s", "square", "TARGETING_MATCH"), ("t", "triangle", "TARGETING_MATCH"), ("x", "circle", "DEFAULT")]:
        f.case(f"the shape {x} gives {variant}", "if", {"shape": x}, f.yes("if", variant, reason))
    f.add("bare-bool", {"true": "T", "false": "F"}, "false", {"==": [v("x"), 1]})
    f.case("true names the variant true", "bare-bool", {"x": 1}, f.yes("bare-bool", "true"))
    f.case("false names the variant false, and is a match", "bare-bool", {"x": 2}, f.yes("bare-bool", "false"))
    f.add("number-names", {"1": "one", "2": "two"}, "1", v("n"))
    f.case("a number names a variant", "number-names", {"n": 2}, f.yes("number-names", "2"))
    f.case("a missing variable gives the default variant", "number-names", {}, f.yes("number-names", "1", "DEFAULT"))
    f.case("a result that is no variant is an error", "number-names", {"n": 3}, error("number-names", "GENERAL", base), status=400)
    f.add("wrong-name", b, "on", {"if": [True, "onn"]})
    f.case("targeting that names a variant that does not exist is an error", "wrong-name", {}, error("wrong-name", "GENERAL", base), status=400)
    f.add("ref", b, "off", {"if": [{"$ref": "is-corp"}, "on", "off"]})
    f.case("a reference is its evaluator, which holds", "ref", {"email": "me@corp.example"}, f.yes("ref", "on"))
    f.case("a reference is its evaluator, which does not hold", "ref", {"email": "me@other.example"}, f.yes("ref", "off"))
    f.add("ref-whole", SHAPES, "triangle", {"$ref": "shape"})
    f.case("a whole targeting may be a reference", "ref-whole", {"round": True}, f.yes("ref-whole", "circle"))
    f.add("own-key", {"own-key": "mine", "off": "no"}, "off", v("$flagd.flagKey"))
    f.case("$flagd.flagKey is the key of the flag", "own-key", {}, f.yes("own-key", "own-key"))
    f.case("a caller cannot forge $flagd", "own-key", {"$flagd": {"flagKey": "off"}}, f.yes("own-key", "own-key"))
    f.add("time", b, "off", {"if": [{"<": [v("$flagd.timestamp"), 1767225600]}, "on"]})
    f.case("$flagd.timestamp is before", "time", {}, f.yes("time", "on"), now="2025-12-31T23:59:59Z")
    f.case("$flagd.timestamp is at", "time", {}, f.yes("time", "off", "DEFAULT"), now="2026-01-01T00:00:00Z")
    f.add("key-targeting", b, "off", {"if": [{"in": [v("targetingKey"), ["ann", "bob"]]}, "on"]})
    f.case("the targeting key is a variable that is in the list", "key-targeting", {"targetingKey": "bob"}, f.yes("key-targeting", "on"))
    f.case("the targeting key is a variable that is not in the list", "key-targeting", {"targetingKey": "cid"}, f.yes("key-targeting", "off", "DEFAULT"))
    f.add("version", b, "off", {"if": [{"sem_ver": [v("version"), ">=", "2.1.0"]}, "on", "off"]})
    for version, variant in [("2.1.0", "on"), ("v3", "on"), ("2.0.9", "off"), ("2.1.0-rc.1", "off"), ("none", "off"), (3, "on")]:
        f.case(f"sem_ver takes {js(version)}", "version", {"version": version}, f.yes("version", variant))
    f.add("prefix", b, "off", {"starts_with": [v("name"), "a"]})
    f.case("starts_with of a non-string is null: the default variant", "prefix", {"name": 1}, f.yes("prefix", "off", "DEFAULT"))
    f.case("starts_with that gives true names no variant here", "prefix", {"name": "abc"}, error("prefix", "GENERAL", base), status=400)
    f.add("own-metadata", b, "on", metadata={"version": "v4", "owner": "me", "beta": True, "n": 2.5})
    f.case("a flag's metadata is laid over the set's", "own-metadata", {}, success("own-metadata", True, "on", "STATIC", {"flagSetId": "shop", "version": "v4", "owner": "me", "beta": True, "n": 2.5}))
    f.add("ints", {"one": 1, "big": 9007199254740991, "minus": -3}, "one", v("pick"))
    f.add("floats", {"half": 0.5, "one": 1, "zero": 0}, "one", v("pick"))
    f.add("objects", {"full": {"a": [1, {"b": None}], "größe": "🌊"}, "empty": {}}, "full", v("pick"))
    f.add("strings", {"empty": "", "größe": "🌊"}, "empty", v("pick"))
    for key in ["ints", "floats", "objects", "strings"]:
        for variant, value in list(f.flags[key]["variants"].items()):
            e = f.yes(key, variant)
            if key == "floats":
                e["value"] = float(value)
            f.case(f"{key}: the variant {variant} keeps its type", key, {"pick": variant}, e)
    f.add("team/größe 🌊", b, "on")
    f.case("a key may have slashes and unicode", "team/größe 🌊", {}, f.yes("team/größe 🌊", "on", "STATIC"))
    f.write()


def fractional(version):
    f = Document(f"flagd-fractional-{version}", f"flagd's fractional {version}", None if version == "v2" else version)
    choose = {"v1": h.fractional_v1, "v2": h.fractional_v2, "v3": h.fractional_v3}[version]
    names = list(SHAPES)

    def implicit(flag, user):
        return [flag, user] if version == "v3" else flag + user

    def ask(key, targeting, weights, unit, contexts, arms=names):
        f.add(key, SHAPES, "triangle", targeting)
        for context in contexts:
            i = choose(unit(context), weights)
            f.case(f"{key}: {js(context)} gets {arms[i]}", key, context, f.yes(key, arms[i]))

    entries = lambda weights: [[n, w] for n, w in zip(names, weights)]
    users = [{"targetingKey": u} for u in USERS]
    ask("implicit", {"fractional": entries([50, 30, 20])}, [50, 30, 20], lambda c: implicit("implicit", c["targetingKey"]), users)
    ask("explicit", {"fractional": [v("email"), *entries([50, 30, 20])]}, [50, 30, 20], lambda c: c["email"], [{"email": u, "targetingKey": "zoe"} for u in USERS])
    ask("salted", {"fractional": [{"cat": ["pepper", v("targetingKey")]}, *entries([20, 20, 60])]}, [20, 20, 60], lambda c: "pepper" + c["targetingKey"], users[:5])
    ask("shorthand", {"fractional": [["circle"], ["square"], ["triangle"]]}, [1, 1, 1], lambda c: implicit("shorthand", c["targetingKey"]), users[:5])
    ask("mixed", {"fractional": [["circle"], ["square", 3]]}, [1, 3], lambda c: implicit("mixed", c["targetingKey"]), users[:5])
    ask("single", {"fractional": [["square", 1]]}, [1], lambda c: implicit("single", c["targetingKey"]), users[:2], ["square"])
    ask("zero", {"fractional": entries([0, 100])}, [0, 100], lambda c: implicit("zero", c["targetingKey"]), users[:3])
    ask("negative", {"fractional": [["circle", -5], ["square", 10]]}, [0, 10], lambda c: implicit("negative", c["targetingKey"]), users[:3])
    ask("beyond-hundred", {"fractional": entries([500, 250, 250])}, [500, 250, 250], lambda c: implicit("beyond-hundred", c["targetingKey"]), users[:5])
    ask("nil-first", {"fractional": [v("gone"), *entries([50, 30, 20])]}, [50, 30, 20], lambda c: implicit("nil-first", c["targetingKey"]), users[:5])
    ask("nested-if", {"if": [{"==": [v("plan"), "pro"]}, {"fractional": entries([50, 50])}, "triangle"]}, [50, 50], lambda c: implicit("nested-if", c["targetingKey"]), [{**u, "plan": "pro"} for u in users[:4]])
    f.case("nested-if: another plan has no rollout", "nested-if", {"targetingKey": "user-1", "plan": "free"}, f.yes("nested-if", "triangle"))
    ask("computed-weight", {"fractional": [["circle", {"if": [v("more"), 90, 10]}], ["square", 50]]}, [90, 50], lambda c: implicit("computed-weight", c["targetingKey"]), [{**u, "more": True} for u in users[:4]])
    ask("computed-variant", {"fractional": [[{"if": [v("more"), "triangle", "circle"]}, 50], ["square", 50]]}, [50, 50], lambda c: implicit("computed-variant", c["targetingKey"]), [{**u, "more": True} for u in users[:4]], ["triangle", "square"])
    either = {"if": [v("more"), ["circle", 90], ["circle", 10]]}
    more = [{**u, "more": True} for u in users[:4]]
    ask("computed-entry", {"fractional": [["square", 50], either]}, [50, 90], lambda c: implicit("computed-entry", c["targetingKey"]), more, ["square", "circle"])
    ask("computed-first", {"fractional": [either, ["square", 50]]}, [90, 50], lambda c: implicit("computed-first", c["targetingKey"]), more, ["circle", "square"])
    ask("computed-after-unit", {"fractional": [v("email"), either, ["square", 50]]}, [10, 50], lambda c: c["email"], [{"email": u} for u in USERS[:4]], ["circle", "square"])
    ask("merged-entry", {"fractional": [{"merge": [v("name"), v("share")]}, ["square"]]}, [3, 1], lambda c: implicit("merged-entry", c["targetingKey"]), [{**u, "name": "triangle", "share": 3} for u in users[:4]], ["triangle", "square"])
    ask("computed-all", {"fractional": [{"if": [v("more"), ["square"], ["circle"]]}, v("entry")]}, [1, 2], lambda c: implicit("computed-all", c["targetingKey"]), [{**c, "entry": ["triangle", 2]} for c in more], ["square", "triangle"])
    for key, why, targeting, context in [
        ("no-entry", "with an entry that is none", {"fractional": [["circle", 1], v("entry")]}, {"targetingKey": "user-1", "entry": "square"}),
        ("empty-entry", "with an entry that is empty", {"fractional": [["circle", 1], v("entry")]}, {"targetingKey": "user-1", "entry": []}),
        *([] if version == "v1" else [("half-weight", "with a weight that is no whole number", {"fractional": [["circle", 1.5], ["square", 1]]}, {"targetingKey": "user-1"})]),
        ("text-weight", "with a weight that is no number", {"fractional": [["circle", "1"], ["square", 1]]}, {"targetingKey": "user-1"}),
        ("no-key", "without targeting key", {"fractional": entries([50, 50])}, {}),
        ("empty-key", "with an empty targeting key", {"fractional": entries([50, 50])}, {"targetingKey": ""}),
        ("all-zero", "whose weights are all zero", {"fractional": entries([0, 0])}, {"targetingKey": "user-1"}),
    ]:
        f.add(key, SHAPES, "triangle", targeting)
        f.case(f"a fractional {why} is null: the default variant", key, context, f.yes(key, "triangle", "DEFAULT"))
    f.add("null-arm", SHAPES, "triangle", {"fractional": [[None, 1]]})
    f.case("an arm whose variant is null gives the default variant", "null-arm", {"targetingKey": "user-1"}, f.yes("null-arm", "triangle", "DEFAULT"))
    if version != "v3":
        f.add("number-unit", SHAPES, "triangle", {"fractional": [v("unit"), *entries([50, 50])]})
        f.case("a fractional whose unit is a number is null: the default variant", "number-unit", {"targetingKey": "user-1", "unit": 7}, f.yes("number-unit", "triangle", "DEFAULT"))
    if version == "v3":
        for unit in [7, -7, 0, 1.5, 0.1, 100000.0, True, False, 2**40, {"b": 1, "a": "x"}]:
            key = f"unit-{js(unit)}"
            f.add(key, SHAPES, "triangle", {"fractional": [v("unit"), *entries([50, 30, 20])]})
            i = h.fractional_v3(unit, [50, 30, 20])
            f.case(f"the unit {js(unit)} is hashed as CBOR and gets {names[i]}", key, {"unit": unit, "targetingKey": "zoe"}, f.yes(key, names[i]))
    f.write()


def write():
    semantics()
    for version in ("v1", "v2", "v3"):
        fractional(version)


WITNESS = """
import { FlagdCore } from '@openfeature/flagd-core';
import fs from 'fs';
const { flagd, cases } = JSON.parse(fs.readFileSync(0));
const core = new FlagdCore();
core.setConfigurations(JSON.stringify(flagd));
const quiet = { debug() {}, info() {}, warn() {}, error() {} };
for (const { name, flag, context, expect } of cases) {
  const got = core.resolveStringEvaluation(flag, '', context, quiet);
  if (got.variant !== expect.variant) console.log(name, 'flagd-core:', got.variant, got.reason);
}
console.log(cases.length, 'cases');
"""

if __name__ == "__main__":
    cases = (pathlib.Path(__file__).resolve().parent.parent / "cases/flagd-fractional-v2.json").read_text()
    node = ["node", "--input-type=module", "-e", WITNESS]
    sys.exit(subprocess.run(node, input=json.dumps(json.loads(cases)), text=True, cwd=sys.argv[1]).returncode)
