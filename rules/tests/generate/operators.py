"""Operator cases: one row is (value, attribute, matches?) for one operator, read off the model's docs."""

from corpus import MISSING, File, js, error

S, F = "string", "float"


def sentence(op, value, attr, policy, matches):
    has_value = value is not MISSING
    rule = op + (" " + js(value) if has_value else "")
    if len(rule) > 80:
        rule = op + f" one of {len(value)} values"
    if policy:
        rule += " with " + ", ".join(f"{k} {str(v).lower() if isinstance(v, bool) else v}" for k, v in policy.items())
    what = "a missing attribute" if attr is MISSING else js(attr)
    if len(what) > 80:
        what = f"a string of {len(attr)} characters"
    return f"{rule} {'matches' if matches else 'does not match'} {what}"


class Clauses:
    def __init__(self, name, description):
        self.file = File(name, description)
        self.flags = {}

    def flag(self, op, value, policy, on_error=None):
        clause = {"attr": "x", "op": op}
        if value is not MISSING:
            clause["value"] = value
        if policy:
            clause["policy"] = policy
        rule = {"id": "r", "when": clause, "serve": {"variant": "on"}}
        if on_error:
            rule["onError"] = on_error
        text = js(rule)
        if text not in self.flags:
            key = f"{op}-{len([k for k in self.flags.values() if k.startswith(op + '-')]) + 1}"
            self.flags[text] = key
            self.file.boolean(key, {"enabled": True, "rules": [rule], "fallthrough": {"variant": "off"}})
        return self.flags[text]

    def row(self, op, value, attr, matches, **policy):
        key = self.flag(op, value, policy)
        context = {} if attr is MISSING else {"x": attr}
        self.file.case(
            sentence(op, value, attr, policy, matches), key, context,
            self.file.on(key) if matches else self.file.off(key),
        )

    def rows(self, op, value, rows, **policy):
        for attr, matches in rows:
            self.row(op, value, attr, matches, **policy)

    def both(self, op, value, rows, **policy):
        """Also negated. A missing attribute is false even then."""
        self.rows(op, value, rows, **policy)
        self.rows("not_" + op, value, [(a, False if a is MISSING else not m) for a, m in rows], **policy)


def write():
    c = Clauses("operators-native", "Every operator with its native behaviour")
    c.both("eq", "a", [("a", True), ("b", False), ("A", False), ("", False), (MISSING, False), (1, False), (True, False),
                       ({"a": 1}, False), (["b", "a"], True), (["b"], False), ([], False), ([1, None], False)])
    c.row("not_eq", "a", None, False)
    c.row("eq", "a", None, False)
    c.rows("eq", 3, [(3, True), (3.0, True), (3.5, False), ("3", False), (True, False), ([1, 3], True)])
    c.rows("eq", 1.5, [(1.5, True), (1, False), ("1.5", False)])
    c.rows("eq", True, [(True, True), (False, False), (1, False), ("true", False)])
    c.rows("eq", "Grüße 🌊", [("Grüße 🌊", True), ("Grüsse", False)])
    c.both("in", ["a", "b"], [("a", True), ("b", True), ("c", False), (MISSING, False), (2, False), (["c", "b"], True),
                              (["c", "d"], False), ([], False)])
    c.rows("in", ["a", 3, True], [("a", True), (3, True), (3.0, True), (True, True), ("3", False), (False, False), (1, False)])
    c.rows("in", [f"id-{n}" for n in range(1000)], [("id-0", True), ("id-999", True), ("id-1000", False), ("id-", False)])
    c.both("starts_with", "ab", [("abc", True), ("ab", True), ("a", False), ("cab", False), ("ABC", False), (MISSING, False),
                                 (12, False), (False, False), (["x", "abx"], True), (["x"], False), ([], False)])
    c.rows("starts_with", ["x", "ab"], [("abc", True), ("xyz", True), ("yz", False)])
    c.rows("starts_with", "é", [("était", True), ("e", False)])
    c.both("ends_with", "bc", [("abc", True), ("bc", True), ("c", False), ("bcd", False), (MISSING, False), (12, False),
                               (["abc", 1], True), (["x"], False), ([], False)])
    c.rows("ends_with", ["@a.example", "@b.example"], [("me@b.example", True), ("me@c.example", False)])
    c.both("contains", "b", [("abc", True), ("b", True), ("ac", False), (MISSING, False), (12, False), (["x", "abc"], True),
                             (["x"], False), ([], False)])
    c.rows("contains", ["x", "y"], [("sky", True), ("sea", False)])
    c.both("matches", "^a[0-9]+$", [("a12", True), ("a", False), ("ba12", False), (MISSING, False), (12, False),
                                    (["x", "a1"], True), (["x"], False), ([], False)])
    c.rows("matches", "b", [("abc", True), ("ac", False)])
    c.rows("matches", ["^x", "z$"], [("xa", True), ("az", True), ("a", False)])
    c.rows("matches", "a", [("a" * 8192, True), ("a" * 8193, False)])
    c.both("lt", 5, [(4, True), (4.9, True), (5, False), (6, False), (-1, True), (MISSING, False), ("4", False), (True, False),
                     ([9, 4], True), ([9], False), ([], False)])
    c.both("lte", 5, [(5, True), (5.0, True), (5.1, False), (4, True), (MISSING, False), ("5", False), ([9, 5], True), ([9], False), ([], False)])
    c.both("gt", 5, [(6, True), (5.1, True), (5, False), (MISSING, False), ("6", False), ([1, 6], True), ([1], False), ([], False)])
    c.both("gte", 5, [(5, True), (6, True), (4.9, False), (MISSING, False), ("5", False), ([1, 5], True), ([1], False), ([], False)])
    c.rows("gt", 0.5, [(1, True), (0.5, False), (0.25, False)])
    c.rows("gte", -2.5, [(-2.5, True), (-3, False), (0, True)])
    new_year = "2026-01-01T00:00:00Z"
    ms = 1767225600000
    c.both("before", new_year, [("2025-12-31T23:59:59Z", True), (new_year, False), ("2026-01-02T00:00:00Z", False),
                                ("2026-01-01T00:30:00+01:00", True), (ms - 1, True), (ms, False), (MISSING, False),
                                (True, False), ({"at": 1}, False), ("soon", False), ([new_year, "2024-01-01T00:00:00Z"], True),
                                ([new_year], False), ([], False)])
    c.both("after", new_year, [("2026-01-01T00:00:01Z", True), ("2026-01-01T00:00:00.001Z", True), (new_year, False),
                               ("2025-01-01T00:00:00Z", False), ("2025-12-31T23:30:00-01:00", True), (ms + 1, True), (MISSING, False),
                               (False, False), (["2024-01-01T00:00:00Z", ms + 1], True), (["2024-01-01T00:00:00Z"], False), ([], False)])
    c.rows("before", ms, [("2025-12-31T23:59:59.999Z", True), (ms, False)])
    c.both("semver_eq", "2.3.0", [("2.3.0", True), ("2.3", True), ("v2.3.0", True), ("2.3.1", False), ("2.3.0+build.7", True),
                                  ("2.3.0-rc.1", False), (MISSING, False), (2, False), ("two", False), (["1.0.0", "2.3.0"], True),
                                  (["1.0.0"], False), ([], False)])
    c.both("semver_lt", "2.3.0", [("2.2.9", True), ("2.3.0-rc.1", True), ("2.3.0", False), ("2.10.0", False), (MISSING, False),
                                  (2, False), (["9.0.0", "1.0.0"], True), (["9.0.0"], False), ([], False)])
    c.both("semver_lte", "2.3.0", [("2.3.0", True), ("2.3", True), ("2.3.1", False), (MISSING, False), (2, False),
                                   (["9.0.0", "2.3.0"], True), (["9.0.0"], False), ([], False)])
    c.both("semver_gt", "2.3.0", [("2.10.0", True), ("3", True), ("2.3.0", False), ("2.3.0+9", False), ("2.3.0-rc.1", False),
                                  (MISSING, False), (3, False), (["1.0.0", "3.0.0"], True), (["1.0.0"], False), ([], False)])
    c.both("semver_gte", "2.3.0", [("2.3.0", True), ("2.3", True), ("2.2.9", False), (MISSING, False), (3, False),
                                   (["1.0.0", "2.3.0"], True), (["1.0.0"], False), ([], False)])
    c.rows("semver_lt", "1.0.0-beta.11", [("1.0.0-beta.2", True), ("1.0.0-alpha.beta", True), ("1.0.0-rc.1", False), ("1.0.0", False)])
    c.both("semver_range", "^1.2", [("1.2.0", True), ("1.9.9", True), ("2.0.0", False), ("1.1.9", False), (MISSING, False),
                                    (1, False), (["0.1.0", "1.3.0"], True), (["0.1.0"], False), ([], False)])
    c.rows("semver_range", "~1.2.3", [("1.2.3", True), ("1.2.9", True), ("1.3.0", False)])
    c.rows("semver_range", ">=1.2.0, <2", [("1.2.0", True), ("1.99.0", True), ("2.0.0", False), ("1.1.0", False)])
    c.both("cidr", "10.0.0.0/8", [("10.1.2.3", True), ("11.0.0.1", False), ("::ffff:10.1.2.3", True), (MISSING, False), (10, False),
                                  ("ten", False), (["11.0.0.1", "10.0.0.1"], True), (["11.0.0.1"], False), ([], False)])
    c.rows("cidr", ["192.168.1.0/24", "2001:db8::/32"], [("192.168.1.255", True), ("192.168.2.0", False), ("2001:db8:1::1", True),
                                                         ("2001:db9::1", False)])
    c.rows("exists", MISSING, [("a", True), ("", True), (0, True), (False, True), ([], True), ([1], True), ({}, True), (None, False), (MISSING, False)])
    c.rows("not_exists", MISSING, [(None, True), ("a", False), (False, False), ([], False), (["a"], False), (MISSING, True)])
    c.rows("is_null", MISSING, [(None, True), ("a", False), ("", False), (0, False), (False, False), ([], False), ([None], False), (MISSING, False)])
    c.rows("not_is_null", MISSING, [(None, False), ("a", True), (0, True), (["a"], True), ([], True), (MISSING, False)])
    c.both("type_is", "string", [("a", True), ("", True), (1, False), (0, False), (False, False), (None, False), (["a"], False), ([], False), (MISSING, False)])
    c.rows("type_is", "number", [(1, True), (1.5, True), ("1", False)])
    c.rows("type_is", "boolean", [(False, True), ("false", False), (0, False)])
    c.rows("type_is", ["array", "object"], [([], True), ([1], True), ({}, True), ("a", False), (None, False)])
    c.rows("type_is", "null", [(None, True), ("null", False), (MISSING, False)])
    c.both("size", 2, [([1, 2], True), ([1], False), ([], False), ("ab", False), (2, False), ({"a": 1, "b": 2}, False), (MISSING, False)])
    c.rows("size", 0, [([], True), ([1], False), (0, False), (MISSING, False)])
    c.rows("size", [1, 3], [([1], True), ([1, 2, 3], True), ([1, 2], False)])
    c.file.write()

    c = Clauses("operators-policies", "What vendors do differently, switched on clause by clause")
    # Missing attributes.
    c.row("not_eq", "a", MISSING, True, missing="true")
    c.row("not_eq", "a", MISSING, False, missing="true", negation="afterAll")
    c.row("not_eq", "a", MISSING, True, negation="afterAll")
    c.row("not_in", ["a", "b"], MISSING, True, negation="afterAll")
    c.row("not_in", ["a", "b"], "a", False, negation="afterAll")
    c.row("not_lt", 5, MISSING, True, negation="afterAll")
    c.row("not_semver_gt", "1.0.0", MISSING, True, negation="afterAll")
    c.row("eq", None, MISSING, True, missing="asNull")
    c.row("eq", "a", MISSING, False, missing="asNull")
    c.row("not_eq", "a", MISSING, True, missing="asNull")
    c.row("is_null", MISSING, MISSING, True, missing="asNull")
    c.row("not_is_null", MISSING, MISSING, False, missing="asNull")
    c.row("lt", 5, MISSING, True, missing="asNull", coerce="js")
    c.row("lt", 0, MISSING, False, missing="asNull", coerce="js")
    c.row("eq", "", MISSING, True, missing="asEmpty")
    c.row("eq", "a", MISSING, False, missing="asEmpty")
    c.row("not_eq", "a", MISSING, True, missing="asEmpty")
    c.row("starts_with", "", MISSING, True, missing="asEmpty")
    c.row("matches", "^$", MISSING, True, missing="asEmpty")
    c.row("contains", "a", MISSING, False, missing="asEmpty")
    # Arrays.
    for op, value, yes, no in [("eq", "a", "a", "b"), ("in", ["a", "b"], "b", "c"), ("starts_with", "a", "ab", "b"), ("ends_with", "b", "ab", "a"),
                               ("contains", "b", "abc", "x"), ("matches", "^a", "ab", "b"), ("lt", 5, 1, 9), ("gte", 5, 9, 1),
                               ("before", "2026-01-01T00:00:00Z", "2025-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
                               ("semver_gte", "2.0.0", "2.1.0", "1.0.0"), ("cidr", "10.0.0.0/8", "10.0.0.1", "11.0.0.1")]:
        c.rows(op, value, [([yes, yes], True), ([yes, no], False), ([], False), (yes, True)], array="all")
        c.rows(op, value, [([yes], False), (yes, True), ([], False)], array="scalar")
    c.row("not_eq", "a", ["a", "b"], True, array="all")
    c.row("not_eq", "a", ["a", "a"], False, array="all")
    c.row("not_eq", "a", [], True, array="all")
    c.row("not_eq", "a", ["a"], True, array="scalar")
    # Letter case.
    c.rows("eq", "Straße", [("STRAße", True), ("straße", True), ("strasse", False)], ignoreCase=True)
    c.rows("in", ["ÉCOLE", "b"], [("école", True), ("B", True), ("c", False)], ignoreCase=True)
    c.rows("starts_with", "AB", [("abc", True), ("aBc", True), ("bc", False)], ignoreCase=True)
    c.rows("ends_with", "@Example.COM", [("me@example.com", True), ("me@example.org", False)], ignoreCase=True)
    c.rows("contains", "Ä", [("bär", True), ("bar", False)], ignoreCase=True)
    c.rows("matches", "^AB+$", [("abb", True), ("abc", False)], ignoreCase=True)
    # Coercion.
    c.rows("eq", "3", [(3, True), ("3", True), (4, False)], coerce="string")
    c.rows("eq", 3, [("3", True), (3, True), ("three", False)], coerce="string")
    c.rows("eq", "true", [(True, True), (False, False)], coerce="string")
    c.rows("in", ["1", "2"], [(2, True), (3, False)], coerce="string")
    c.rows("starts_with", "12", [(123, True), (312, False), (True, False)], coerce="string")
    c.rows("ends_with", "ue", [(True, True), (False, False)], coerce="string")
    c.rows("contains", "2", [(123, True), (13, False)], coerce="string")
    c.rows("matches", "^1.5$", [(1.5, True)], coerce="string")
    c.rows("lt", 10, [("9", True), ("11", False), ("nine", False), (9, True)], coerce="string")
    c.rows("eq", "3", [(3, True), ("3", True), (4, False)], coerce="js")
    c.rows("eq", 3, [("3", True), (3, True), ("3.0", True), ("three", False)], coerce="js")
    c.rows("eq", 1, [(True, True), (False, False)], coerce="js")
    c.rows("eq", True, [(1, True), (0, False), ("", False), (True, True)], coerce="js")
    c.rows("eq", False, [(0, True), ("", True), (1, False)], coerce="js")
    c.rows("lt", 10, [("9", True), ("11", False), ("nine", False), (True, True)], coerce="js")
    c.rows("lt", 10, [(None, True), (MISSING, True), (11, False)], coerce="js", missing="asNull")
    # Null is what SDKs send for what they do not know: it counts as missing unless the clause names it.
    c.rows("lt", 10, [(None, False)], coerce="js")
    c.rows("not_lt", 10, [(None, False)], coerce="js")
    c.rows("eq", None, [(None, True), ("null", False), (0, False)])
    c.rows("in", ["a", None], [(None, True), ("a", True), ("b", False)])
    c.rows("eq", "a", [(None, True), (MISSING, True), ("b", False)], missing="true")
    c.rows("gte", 1, [(True, True), (False, False), ("1", True)], coerce="js")
    c.rows("eq", 1, [("1", True), (True, True), ("x", False), (2, False)], coerce="loose")
    c.rows("eq", "1", [(1, True), ("1", True), ("2", False)], coerce="loose")
    c.rows("lt", 10, [("9", True), ("nine", False), (9, True)], coerce="loose")
    c.rows("eq", "5", [(5, True), ("5", True), (6, False)], coerce="byOperator")
    c.rows("eq", "true", [(True, True), (False, False)], coerce="byOperator")
    c.rows("in", ["1", "true"], [(1, True), (True, True), (2, False), (False, False)], coerce="byOperator")
    c.rows("matches", "^[0-9]+$", [(42, True), (True, False)], coerce="byOperator")
    c.rows("gt", 10, [("11", True), ("9", False), ("x", False), (11, True)], coerce="byOperator")
    c.rows("lte", 1.5, [("1.5", True), ("1.6", False), ("", False)], coerce="byOperator")
    # Versions.
    c.rows("semver_eq", "2.3.0", [("2.3.0", True), ("2.3", False), ("v2.3.0", False), ("2.3.0+b", True)], version="strict")
    c.rows("semver_lt", "2.3.0", [("2.2.9", True), ("2.3.0-rc", True), ("2.2", False), ("02.2.9", False)], version="strict")
    c.rows("semver_eq", "2.3.0+b", [("2.3.0+b", True), ("2.3.0+a", False), ("2.3.0", False)], version="strictWithBuild")
    c.rows("semver_lt", "2.3.0+b", [("2.3.0+a", True), ("2.3.0", True), ("2.3.0+c", False), ("2.2", False)], version="strictWithBuild")
    c.rows("semver_eq", "1.2.0", [("v1.2.0", True), ("1.2", True), ("1.2.0+x", True), ("1", False)], version="goMod")
    c.rows("semver_eq", "1.0.0", [("v1", True), ("1", True)], version="goMod")
    c.rows("semver_gt", "v1.9.0", [("1.10.0", True), ("1.9.0-rc.1", False), ("1.x", False)], version="goMod")
    c.rows("semver_lt", "1.10.0", [("1.9.0", True), ("v1.9.0", True), ("1.10.0-rc.1", True), ("1.10.0", False), ("1.11.0", False)], version="padded")
    c.rows("semver_eq", "1.10.0", [("1.10.0", True), ("v1.10.0", True), ("1.10.0+x", True), ("1.10", False)], version="padded")
    # Dates.
    c.rows("before", "2026-01-01T00:00:00Z", [("2025-01-01T00:00:00Z", True), (0, False)], date="rfc3339")
    c.rows("after", "2026-01-01T00:00:00Z", [("2027-01-01T00:00:00Z", True), (1800000000000, False)], date="rfc3339")
    c.rows("before", 1767225600000, [(0, True), ("2025-01-01T00:00:00Z", False)], date="millis")
    c.rows("after", 1767225600000, [(1767225600001, True), (1767225600000, False), ("2027-01-01T00:00:00Z", False)], date="millis")
    # Arguments of the wrong type that shall be errors.
    for op, value, bad, good in [("starts_with", "a", 3, "ab"), ("matches", "a", True, "a"), ("lt", 5, "x", 4),
                                 ("before", "2026-01-01T00:00:00Z", "soon", 0), ("semver_gt", "1.0.0", "one", "2.0.0"),
                                 ("cidr", "10.0.0.0/8", "ten", "10.0.0.1"), ("size", 2, "ab", [1, 2])]:
        fail = c.flag(op, value, {"badArg": "error"})
        skip = c.flag(op, value, {"badArg": "error"}, "skip")
        c.file.case(f"{op} {js(value)} with badArg error fails the evaluation for {js(bad)}", fail, {"x": bad}, error(fail, "INVALID_CONTEXT"), status=400)
        c.file.case(f"{op} {js(value)} with badArg error and onError skip goes on for {js(bad)}", skip, {"x": bad}, c.file.off(skip))
        c.file.case(f"{op} {js(value)} with badArg error matches {js(good)} as ever", fail, {"x": good}, c.file.on(fail))
        c.file.case(f"{op} {js(value)} with badArg error is no error for a missing attribute", fail, {}, c.file.off(fail))
    c.file.write()
