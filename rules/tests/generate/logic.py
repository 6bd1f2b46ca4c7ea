"""JSONLogic: each tree's result is compared inside the tree (===) or used as a condition.

With `node` and json-logic-js in NODE_PATH, `python3 logic.py` checks every expectation that holds no flagd
operator against that implementation.
"""

import json
import subprocess
import sys

from corpus import File, error, js, success
from structure import conf, rule

v = lambda path, *default: {"var": [path, *default] if default else path}
DATA = {"a": 1, "b": "x", "list": [1, 2, 3, 4], "users": [{"n": "ann", "age": 30}, {"n": "bob", "age": 20}], "o": {"p": {"q": "deep"}},
        "t": True, "f": False, "z": 0, "e": "", "null": None, "empty": [], "num": "12", "word": "jsonlogic", "x.y": "dotted"}
SUM = {"+": [v("accumulator"), v("current")]}
DIGITS = {"+": [{"*": [v("accumulator"), 10]}, v("current")]}
digits = lambda tree: {"reduce": [tree, DIGITS, 0]}

# tree, result
VALUES = [
    (v("a"), 1), (v("b"), "x"), (v("o.p.q"), "deep"), (v("list.1"), 2), (v("users.1.n"), "bob"), (v("gone"), None), (v("gone", 7), 7), (v("a", 7), 1),
    ({"var": ["o.gone.q", "d"]}, "d"), ({"var": ["b"]}, "x"),
    ({"if": [True, 1, 2]}, 1), ({"if": [False, 1, 2]}, 2), ({"if": [False, 1, True, 2, 3]}, 2), ({"if": [False, 1, False, 2, 3]}, 3), ({"if": [False, 1]}, None),
    ({"if": [v("empty"), 1, 2]}, 2), ({"if": ["0", 1, 2]}, 1), ({"if": ["", 1, 2]}, 2), ({"if": [0, 1, 2]}, 2), ({"if": [[0], 1, 2]}, 1),
    ({"==": [1, 1]}, True), ({"==": [1, "1"]}, True), ({"==": [0, False]}, True), ({"==": [1, 2]}, False), ({"==": ["a", "a"]}, True),
    ({"===": [1, 1]}, True), ({"===": [1, "1"]}, False), ({"===": [1, 1.0]}, True), ({"===": ["1", "1"]}, True), ({"===": [True, 1]}, False),
    ({"!=": [1, 2]}, True), ({"!=": [1, "1"]}, False), ({"!==": [1, "1"]}, True), ({"!==": [1, 1]}, False),
    ({"!": [True]}, False), ({"!": True}, False), ({"!": [False]}, True), ({"!": [0]}, True), ({"!": [""]}, True), ({"!": ["0"]}, False), ({"!": [[]]}, True),
    ({"!!": [[]]}, False), ({"!!": ["0"]}, True), ({"!!": [1]}, True), ({"!!": [v("gone")]}, False),
    ({"or": [True, False]}, True), ({"or": [False, True]}, True), ({"or": [False, "a"]}, "a"), ({"or": [False, 0, "b"]}, "b"), ({"or": [0, ""]}, ""),
    ({"and": [True, True]}, True), ({"and": [True, False]}, False), ({"and": [True, "a", 3]}, 3), ({"and": [True, "", 3]}, ""), ({"and": [1, 0, 3]}, 0),
    ({">": [2, 1]}, True), ({">": [1, 1]}, False), ({">": ["2", 1]}, True), ({">=": [1, 1]}, True), ({">=": [0, 1]}, False),
    ({"<": [1, 2]}, True), ({"<": [1, 1]}, False), ({"<": ["1", 2]}, True), ({"<=": [1, 1]}, True), ({"<=": [2, 1]}, False),
    ({"<": [1, 2, 3]}, True), ({"<": [1, 1, 3]}, False), ({"<": [1, 4, 3]}, False), ({"<=": [1, 2, 3]}, True), ({"<=": [1, 1, 3]}, True), ({"<=": [1, 4, 3]}, False),
    ({"<": [v("gone"), 1]}, True), ({"<": ["abc", 1]}, False), ({">": ["abc", 1]}, False),
    ({"max": [1, 3, 2]}, 3), ({"max": [1]}, 1), ({"min": [3, 1, 2]}, 1), ({"min": [-1.5, 0]}, -1.5),
    ({"+": [1, 2]}, 3), ({"+": [2, 2, 2, 2]}, 8), ({"+": ["3.14", 1]}, 4.140000000000001), ({"+": "3.5"}, 3.5), ({"+": [0.5, 0.25]}, 0.75), ({"+": [v("num"), 1]}, 13),
    ({"-": [4, 2]}, 2), ({"-": [2]}, -2), ({"-": 2}, -2), ({"-": [2, 3]}, -1), ({"*": [4, 2]}, 8), ({"*": [2, 2, 2]}, 8), ({"*": ["2", 3]}, 6),
    ({"/": [4, 2]}, 2), ({"/": [1, 4]}, 0.25), ({"/": ["9", 3]}, 3), ({"%": [101, 2]}, 1), ({"%": [-5, 3]}, -2), ({"%": [5.5, 2]}, 1.5),
    (digits({"map": [v("list"), {"*": [v(""), 2]}]}), 2468), (digits({"map": [v("users"), {"/": [v("age"), 10]}]}), 32), (digits({"map": [v("gone"), v("")]}), 0),
    (digits({"filter": [v("list"), {">": [v(""), 2]}]}), 34), (digits({"filter": [v("list"), {"%": [v(""), 2]}]}), 13), (digits({"filter": [v("empty"), True]}), 0),
    ({"reduce": [v("list"), SUM, 0]}, 10), ({"reduce": [v("list"), SUM, 5]}, 15), ({"reduce": [v("empty"), SUM, 7]}, 7), ({"reduce": [v("gone"), SUM, 7]}, 7),
    ({"all": [v("list"), {">": [v(""), 0]}]}, True), ({"all": [v("list"), {">": [v(""), 1]}]}, False), ({"all": [v("empty"), True]}, False),
    ({"none": [v("list"), {">": [v(""), 4]}]}, True), ({"none": [v("list"), {">": [v(""), 3]}]}, False), ({"none": [v("empty"), True]}, True),
    ({"some": [v("list"), {">": [v(""), 3]}]}, True), ({"some": [v("list"), {">": [v(""), 4]}]}, False), ({"some": [v("empty"), True]}, False),
    ({"some": [v("users"), {"==": [v("n"), "bob"]}]}, True),
    (digits({"merge": [[1, 2], [3, 4]]}), 1234), (digits({"merge": [1, 2, [3, 4]]}), 1234), (digits({"merge": [v("list"), 5]}), 12345), (digits({"merge": []}), 0),
    ({"in": ["a", ["a", "b"]]}, True), ({"in": ["c", ["a", "b"]]}, False), ({"in": ["log", v("word")]}, True), ({"in": ["goal", v("word")]}, False), ({"in": [2, v("list")]}, True),
    ({"in": ["a", v("gone")]}, False), ({"in": ["2", v("list")]}, False),
    ({"cat": ["a", "b"]}, "ab"), ({"cat": ["a", 1, True]}, "a1true"), ({"cat": "one"}, "one"), ({"cat": ["I love ", v("b"), " pie"]}, "I love x pie"), ({"cat": [1.5, 2]}, "1.52"), ({"cat": []}, ""),
    ({"substr": [v("word"), 4]}, "logic"), ({"substr": [v("word"), -5]}, "logic"), ({"substr": [v("word"), 1, 3]}, "son"), ({"substr": [v("word"), 4, -2]}, "log"), ({"substr": [v("word"), -5, 2]}, "lo"),
    ({"substr": ["größe", 2, 2]}, "öß"), ({"substr": [v("word"), 20]}, ""),
    ({"log": "kept"}, "kept"), ({"log": [v("a")]}, 1),
    ({"==": [{"cat": {"missing": ["a", "gone"]}}, "gone"]}, True), ({"!!": {"missing": ["a", "b"]}}, False), ({"in": ["gone", {"missing": ["gone", "a", "away"]}]}, True),
    ({"in": ["e", {"missing": ["e"]}]}, True), ({"in": ["null", {"missing": ["null"]}]}, True), ({"!!": {"missing": {"merge": ["a", "b"]}}}, False),
    ({"!!": {"missing_some": [1, ["a", "gone"]]}}, False), ({"in": ["gone", {"missing_some": [2, ["a", "gone"]]}]}, True), ({"!!": {"missing_some": [2, ["a", "b", "gone"]]}}, False),
    ({"if": [{"missing": ["gone"]}, "m", "p"]}, "m"), ({"if": [{"missing": ["a"]}, "m", "p"]}, "p"),
    ({"and": [{"<": [v("a"), 5]}, {"==": [v("b"), "x"]}]}, True), ({"var": ["a.b.c", {"cat": ["d", "e"]}]}, "de"), ({"?:": [True, 1, 2]}, 1),
    ({"reduce": [{"filter": [v("users"), {">=": [v("age"), 25]}]}, {"+": [v("accumulator"), v("current.age")]}, 0]}, 30),
]
# Arguments that are missing, of another type, or an array. What is equal to nothing (NaN, an array) is compared as
# its text.
text = lambda tree: {"cat": [tree]}
GONE, LIST = v("gone"), v("list")
VALUES += [
    ({"!!": {"var": GONE}}, True), ({"var": True}, None), ({"var": LIST}, None), (text({"missing": [v("a")]}), "1"), (text({"missing": [True]}), "true"), (text({"missing": LIST}), "1,2,3,4"), (text({"missing": [GONE, "a"]}), ""),
    (text({"missing_some": [GONE, ["q"]]}), ""), (text({"missing_some": ["x", ["a"]]}), ""), (text({"missing_some": ["x", ["gone"]]}), "gone"), (text({"missing_some": [1, LIST]}), "1,2,3,4"), (text({"missing_some": [1, "a"]}), ""),
    ({"==": [GONE, 1]}, False), ({"==": [GONE, None]}, True), ({"==": [GONE, v("nowhere")]}, True), ({"==": ["text", 1]}, False), ({"==": [LIST, "1,2,3,4"]}, True), ({"==": [[2], 2]}, True),
    ({"===": [GONE, 0]}, False), ({"===": [GONE, None]}, True), ({"===": [LIST, "1,2,3,4"]}, False),
    ({"!=": [GONE, 0]}, True), ({"!=": [GONE, None]}, False), ({"!=": ["text", 1]}, True), ({"!=": [LIST, "1,2,3,4"]}, False),
    ({"!==": [GONE, 0]}, True), ({"!==": [GONE, None]}, False), ({"!==": [LIST, "1,2,3,4"]}, True),
    ({"!": [GONE]}, True), ({"!": [LIST]}, False), ({"!": [v("empty")]}, True), ({"!": [v("o")]}, False), ({"!!": [LIST]}, True), ({"!!": [v("o")]}, True),
    ({"or": [GONE, "d"]}, "d"), ({"or": ["text", 1]}, "text"), (text({"or": [LIST, 1]}), "1,2,3,4"), ({"or": [v("empty"), 1]}, 1),
    ({"and": [GONE, 1]}, None), ({"and": ["text", 1]}, 1), ({"and": [LIST, 1]}, 1), (text({"and": [1, LIST]}), "1,2,3,4"),
    *(({op: [condition, 1, 2]}, result) for op in ("if", "?:") for condition, result in [(GONE, 2), ("text", 1), (LIST, 1), (v("o"), 1)]),
    ({">": [GONE, 0]}, False), ({">": ["text", 1]}, False), ({">": [True, 0]}, True), ({">": [v("o"), 1]}, False), ({">": [LIST, 1]}, False), ({">": [[5], 3]}, True),
    ({">=": [GONE, 0]}, True), ({">=": ["text", 1]}, False), ({">=": [True, 0]}, True), ({">=": [v("o"), 1]}, False), ({">=": [LIST, 1]}, False), ({">=": [[5], 3]}, True),
    ({"<": [GONE, 0]}, False), ({"<": ["text", 1]}, False), ({"<": [False, 1]}, True), ({"<": [v("o"), 1]}, False), ({"<": [LIST, 1]}, False), ({"<": [[2], 3]}, True), ({"<": [0, GONE, 2]}, False),
    ({"<=": [GONE, 0]}, True), ({"<=": ["text", 1]}, False), ({"<=": [True, 1]}, True), ({"<=": [v("o"), 1]}, False), ({"<=": [LIST, 1]}, False), ({"<=": [0, [1], 2]}, True),
    ({"max": [GONE, 1]}, 1), (text({"max": ["text", 1]}), "NaN"), ({"max": [True, -1]}, 1), (text({"max": [LIST, 1]}), "NaN"), ({"max": [[7], 1]}, 7), (text({"max": []}), "-Infinity"),
    ({"min": [GONE, 1]}, 0), (text({"min": ["text", 1]}), "NaN"), ({"min": [True, -1]}, -1), (text({"min": [LIST, 1]}), "NaN"), ({"min": [[7], 9]}, 7), (text({"min": []}), "Infinity"),
    (text({"+": [GONE, 1]}), "NaN"), (text({"+": ["text", 1]}), "NaN"), (text({"+": [True, 1]}), "NaN"), ({"+": [LIST, 1]}, 2), ({"+": [[7], 1]}, 8),
    (text({"*": [GONE, 1]}), "NaN"), (text({"*": ["text", 1]}), "NaN"), (text({"*": [True, 1]}), "NaN"), ({"*": [LIST, 3]}, 3), ({"*": [[7], 2]}, 14),
    ({"-": [GONE, 2]}, -2), ({"-": [2, GONE]}, 2), (text({"-": ["text", 2]}), "NaN"), ({"-": [True, 2]}, -1), (text({"-": [LIST, 2]}), "NaN"), ({"-": [[8], 3]}, 5),
    ({"/": [GONE, 2]}, 0), (text({"/": [2, GONE]}), "Infinity"), (text({"/": ["text", 2]}), "NaN"), ({"/": [True, 2]}, 0.5), (text({"/": [LIST, 2]}), "NaN"), ({"/": [[8], 4]}, 2),
    ({"%": [GONE, 2]}, 0), (text({"%": [2, GONE]}), "NaN"), (text({"%": ["text", 2]}), "NaN"), ({"%": [True, 2]}, 1), (text({"%": [LIST, 2]}), "NaN"), ({"%": [[8], 3]}, 2),
    *((text({op: [source, v("")]}), result) for op in ("map", "filter") for source, result in [(GONE, ""), ("text", ""), (v("o"), ""), (LIST, "1,2,3,4")]),
    *(({op: [source, True]}, op == "none") for op in ("all", "none", "some") for source in (GONE, "text", v("o"))),
    ({"all": [LIST, True]}, True), ({"none": [LIST, True]}, False), ({"some": [LIST, True]}, True), ({"reduce": ["text", 1, 9]}, 9), ({"reduce": [v("o"), 1, 9]}, 9),
    (text({"merge": [GONE, 1]}), ",1"), (text({"merge": ["text", LIST]}), "text,1,2,3,4"),
    ({"in": [GONE, ["a"]]}, False), ({"in": ["1", 12]}, False), ({"in": ["1", True]}, False), ({"in": [LIST, ["a"]]}, False), ({"in": [1, "212"]}, True), ({"in": [LIST, "x1,2,3,4y"]}, True), ({"in": [GONE, "a null"]}, True),
    ({"cat": ["a", GONE, "b"]}, "ab"), ({"cat": ["a", True, v("o")]}, "atrue[object Object]"), ({"cat": ["a", LIST]}, "a1,2,3,4"), ({"cat": [[None, 1]]}, ",1"),
    ({"substr": [GONE, 1]}, "ull"), ({"substr": [12345, 1, 2]}, "23"), ({"substr": [LIST, 2, 3]}, "2,3"), ({"substr": ["text", "x"]}, "text"), ({"substr": ["text", GONE]}, "text"), ({"substr": ["text", [1]]}, "ext"), ({"substr": [True, 1]}, "rue"),
    ({"log": GONE}, None), (text({"log": [LIST]}), "1,2,3,4"), (text({"log": v("o")}), "[object Object]"),
]
# Own operators and context entries of flagd: (tree, context, result)
FLAGD = [
    ({"starts_with": [v("b"), "x"]}, DATA, True), ({"starts_with": [v("word"), "logic"]}, DATA, False), ({"ends_with": [v("word"), "logic"]}, DATA, True),
    ({"ends_with": [v("word"), "json"]}, DATA, False), ({"starts_with": [v("a"), "1"]}, DATA, None), ({"starts_with": ["a"]}, DATA, None), ({"ends_with": ["a", 1]}, DATA, None),
    ({"ends_with": ["abc", "c", "x"]}, DATA, None), ({"starts_with": [v("gone"), "a"]}, DATA, None),
    ({"sem_ver": ["1.2.3", "=", "1.2.3"]}, DATA, True), ({"sem_ver": ["1.2.3", "!=", "1.2.3"]}, DATA, False), ({"sem_ver": ["1.2.3", "<", "1.10.0"]}, DATA, True),
    ({"sem_ver": ["1.2.3", "<=", "1.2.3"]}, DATA, True), ({"sem_ver": ["1.2.3", ">", "1.2.3-rc.1"]}, DATA, True), ({"sem_ver": ["1.2.2", ">=", "1.2.3"]}, DATA, False),
    ({"sem_ver": ["1.9.0", "^", "1.2.3"]}, DATA, True), ({"sem_ver": ["1.0.0", "^", "1.2.3"]}, DATA, True), ({"sem_ver": ["2.0.0", "^", "1.2.3"]}, DATA, False),
    ({"sem_ver": ["1.2.0", "~", "1.2.9"]}, DATA, True), ({"sem_ver": ["1.3.0", "~", "1.2.9"]}, DATA, False), ({"sem_ver": ["v1.2.3", "=", "1.2.3"]}, DATA, True),
    ({"sem_ver": ["V1.2.3", "=", "1.2.3"]}, DATA, True), ({"sem_ver": ["1.2", "=", "1.2.0"]}, DATA, True), ({"sem_ver": ["1", "=", "1.0.0"]}, DATA, True), ({"sem_ver": [1, "=", "1.0.0"]}, DATA, True),
    ({"sem_ver": ["1.2.3+build", "=", "1.2.3"]}, DATA, True), ({"sem_ver": ["1.2.3", "?", "1.2.3"]}, DATA, None), ({"sem_ver": ["one", "=", "1.2.3"]}, DATA, None), ({"sem_ver": ["1.2.3", "="]}, DATA, None),
    ({"sem_ver": [v("gone"), "=", "1.0.0"]}, DATA, None), ({"sem_ver": ["1.2.3.4", "=", "1.2.3"]}, DATA, None),
    ({"in": ["x", [v("b")]]}, DATA, True), (v("x.y"), DATA, "dotted"),
    # A value that is no text is null to these; a version may be a number, which an array is not.
    ({"starts_with": [LIST, "1"]}, DATA, None), ({"ends_with": [LIST, "4"]}, DATA, None), ({"ends_with": [v("gone"), "4"]}, DATA, None), ({"ends_with": ["4", LIST]}, DATA, None),
    ({"sem_ver": [LIST, "=", "1.2.3"]}, DATA, None), ({"sem_ver": [True, "=", "1.2.3"]}, DATA, None), ({"sem_ver": ["1.2.3", LIST, "1.2.3"]}, DATA, None), ({"sem_ver": ["1.2.3", "=", GONE]}, DATA, None),
    # json-logic-js throws here; an array that is not there has no keys.
    (text({"missing_some": [1, GONE]}), DATA, ""),
]


def write():
    f = File("jsonlogic", "JSONLogic trees as results and as conditions")
    seen = {}

    def ask(tree, context, result):
        key = f"tree-{len(f.document['state']['flags'])}"
        same = {"===": [tree, result]}
        f.flag(key, "string", {"true": "yes", "false": "no", "rest": "rest"}, conf([rule(serve={"logic": {"tree": same}})], {"variant": "rest"}))
        name = f"{js(tree)} is {js(result)}"
        if name in seen:
            return
        seen[name] = True
        used = {k: x for k, x in context.items() if k in js(tree) or k.split(".")[0] in js(tree)}
        f.case(name, key, context if "missing" in js(tree) else used, success(key, "yes", "true", "TARGETING_MATCH"))

    for tree, result in VALUES:
        ask(tree, DATA, result)
    for tree, context, result in FLAGD:
        ask(tree, context, result)

    # A result names a variant.
    f.flag("names", "string", {"true": "T", "false": "F", "3": "three", "word": "W", "1.5": "one and a half", "rest": "R"}, conf([rule(serve={"logic": {"tree": v("x")}})], {"variant": "rest"}))
    for x, variant, value in [("word", "word", "W"), (True, "true", "T"), (False, "false", "F"), (3, "3", "three"), (1.5, "1.5", "one and a half"), ("3", "3", "three")]:
        f.case(f"the result {js(x)} names the variant {variant}", "names", {"x": x}, success("names", value, variant, "TARGETING_MATCH"))
    f.case("the result null goes on", "names", {"x": None}, success("names", "R", "rest", "DEFAULT"))
    f.case("a missing variable is null and goes on", "names", {}, success("names", "R", "rest", "DEFAULT"))
    f.case("a result that names no variant is an error", "names", {"x": "other"}, error("names", "GENERAL"), status=400)
    f.case("an empty result names no variant", "names", {"x": ""}, error("names", "GENERAL"), status=400)
    f.flag("skips", "string", {"word": "W", "rest": "R"}, conf([rule(serve={"logic": {"tree": v("x")}}, onError="skip")], {"variant": "rest"}))
    f.case("a result that names no variant is skipped with onError skip", "skips", {"x": "other"}, success("skips", "R", "rest", "DEFAULT"))
    # As a condition, truthiness counts.
    f.boolean("condition", conf([rule({"logic": v("x")})]))
    for x, truthy in [(True, True), (False, False), (1, True), (0, False), ("a", True), ("0", True), ("", False), ([], False), ([0], True), (None, False), (-1, True)]:
        f.case(f"the condition {js(x)} is {'truthy' if truthy else 'not truthy'}", "condition", {"x": x}, f.on("condition") if truthy else f.off("condition"))
    f.boolean("mixed", conf([rule({"all": [{"attr": "country", "op": "eq", "value": "DE"}, {"logic": {">": [v("score"), 3]}}]})]))
    for country, score, matches in [("DE", 4, True), ("DE", 3, False), ("FR", 4, False)]:
        f.case(f"logic and clauses mix: {country} {score}", "mixed", {"country": country, "score": score}, f.on("mixed") if matches else f.off("mixed"))
    f.flag("flagd-key", "string", {"flagd-key": "mine", "rest": "R"}, conf([rule(serve={"logic": {"tree": v("$flagd.flagKey")}})], {"variant": "rest"}))
    f.case("$flagd.flagKey is the flag's key", "flagd-key", {"$flagd": {"flagKey": "forged"}}, success("flagd-key", "mine", "flagd-key", "TARGETING_MATCH"))
    f.boolean("flagd-time", conf([rule({"logic": {">=": [v("$flagd.timestamp"), 1767225600]}})]))
    f.case("$flagd.timestamp counts seconds", "flagd-time", {}, f.on("flagd-time"), now="2026-01-01T00:00:00Z")
    f.case("$flagd.timestamp is now, not the caller's", "flagd-time", {"$flagd": {"timestamp": 99999999999}}, f.off("flagd-time"), now="2025-12-31T23:59:59.999Z")
    f.write()


if __name__ == "__main__":
    script = "const l=require('json-logic-js');const [rows,data]=JSON.parse(require('fs').readFileSync(0));for(const [t,r] of rows){let g;try{g=l.apply(t,data)}catch(e){g='THROWS '+e};if(g===undefined)g=null;if(JSON.stringify(g)!==JSON.stringify(r))console.log(JSON.stringify(t),'expected',JSON.stringify(r),'json-logic-js',JSON.stringify(g))}"
    done = subprocess.run(["node", "-e", script], input=json.dumps([VALUES, DATA]), text=True, capture_output=True)
    print(done.stdout, done.stderr, f"{len(VALUES)} trees")
    sys.exit(done.returncode)
