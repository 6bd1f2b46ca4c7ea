"""Writes the conformance corpus (rules/tests/cases/*.json).

The expectations are stated here by hand, or computed by the independent implementations in `hashes.py`
and, for JSONLogic, checked against json-logic-js; never taken from the evaluator's own output.
Run: python3 rules/tests/generate/corpus.py
"""

import json
import pathlib

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "cases"


class Missing:
    def __repr__(self):
        return "MISSING"


MISSING = Missing()


def js(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def success(key, value, variant, reason, metadata=None):
    return {"key": key, "value": value, "variant": variant, "reason": reason, "metadata": metadata or {}}


def code_default(key, reason, metadata=None):
    return {"key": key, "variant": "", "reason": reason, "metadata": metadata or {}}


def error(key, code, metadata=None):
    return {"key": key, "errorCode": code, "metadata": metadata or {}}


def not_found(key):
    return error(key, "FLAG_NOT_FOUND")


class File:
    def __init__(self, name, description):
        self.name = name
        self.document = {"description": description, "state": {"flags": {}, "segments": {}}}
        self.cases = []

    def flag(self, key, kind, variants, config, **definition):
        assert key not in self.document["state"]["flags"], key
        self.document["state"]["flags"][key] = {
            "definition": {"type": kind, "variants": variants, **definition}, "config": config}

    def boolean(self, key, config, **definition):
        self.flag(key, "boolean", {"on": True, "off": False}, config, **definition)

    def on(self, key, reason="TARGETING_MATCH"):
        return success(key, True, "on", reason)

    def off(self, key, reason="DEFAULT"):
        return success(key, False, "off", reason)

    def segment(self, key, **segment):
        self.document["state"]["segments"][key] = segment

    def case(self, name, flag, context, expect, status=200, now=None, audience=None, text=None):
        case = {"name": name, "flag": flag, "context": context}
        if now:
            case["now"] = now
        if audience:
            case["audience"] = audience
        case["status"] = status
        case["expect"] = expect
        if text:
            case["text"] = text
        assert all(name != other["name"] for other in self.cases), name
        self.cases.append(case)

    def write(self):
        # One case a line: a change of one case is a change of one line.
        head = json.dumps(self.document, ensure_ascii=False, indent=1)
        flags = self.document.get("state", {}).get("flags")
        if flags is not None:
            parts = {k: v for k, v in self.document["state"].items() if k != "flags" and v}
            lines = [f"  {js(k)}: {js(v)}" for k, v in flags.items()]
            state = [f'"{k}": {js(v)}' for k, v in parts.items()]
            state.append('"flags": {\n' + ",\n".join(lines) + "\n }")
            head = '{\n "description": ' + js(self.document["description"]) + ',\n "state": {\n ' + ",\n ".join(state) + "\n }\n}"
        cases = ",\n".join("  " + js(case) for case in self.cases)
        text = head.rstrip()[:-1].rstrip() + ',\n "cases": [\n' + cases + "\n ]\n}\n"
        json.loads(text)
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{self.name}.json").write_text(text)
        print(f"{self.name}: {len(self.cases)}")
        File.total += len(self.cases)


File.total = 0

if __name__ == "__main__":
    import cel
    import corpus
    import operators
    import structure
    import splits
    import logic
    import flagd

    for module in (operators, structure, splits, logic, flagd, cel):
        module.write()
    print("total:", corpus.File.total)
