"""Conditions in CEL. What each gives is stated by hand, from the language's definition."""

from corpus import File, error

NOW = "2026-03-01T12:00:00Z"
CONTEXT = {
    "email": "ada@example.org", "age": 36, "price": 10, "rate": 1.5, "beta": True, "nothing": None,
    "groups": ["new", "vip", "eu-west"], "created": "2026-01-31T08:00:00Z", "größe": "XL",
    "orders": [{"id": "a", "total": 10}, {"id": "b", "total": 90, "gift": True}],
    "limits": {"eu": 3, "us": 4}, "app": {"version": "2.3.1"},
}

# (condition, whether it holds for CONTEXT, whether it does for no context at all)
CONDITIONS = [
    ("email.endsWith('@example.org') && age >= 18", True, False),
    ("!email.endsWith('@example.com')", True, False),
    ("!(age < 18 || beta == false)", True, False),
    ("age in [1, 36, 'x'] && !(age in [1, 2])", True, False),
    ("has(app.version) && !has(nothing) && nothing == null", True, False),
    ("!has(app.version)", False, True),
    ("context['größe'] == 'XL'", True, False),
    ("'vip' in groups && !('old' in groups)", True, False),
    ("beta ? age > 30 : age < 30", True, False),
    ("groups.exists(g, g.startsWith('eu-'))", True, False),
    ("groups.all(g, size(g) > 3)", False, False),
    ("orders.exists_one(o, o.total > 50 && has(o.gift))", True, False),
    ("orders.filter(o, o.total > 50).map(o, o.id) == ['b']", True, False),
    ("orders.map(o, has(o.gift), o.id + '!')[0] == 'b!'", True, False),
    ("orders.exists(o, orders.exists(p, o.id != p.id && o.total < p.total))", True, False),
    ("email.split('@')[1] in ['example.org', 'example.com']", True, False),
    ("email.substring(0, 3).upperAscii() == 'ADA' && email.lastIndexOf('e') == 10", True, False),
    ("age * 2 + 1 == 73 && age % 10 == 6 && -age < 0 && age / 5 == 7", True, False),
    ("price * 1.19 > 11.8 && price * rate == 15.0", True, False),
    ("price < age", True, False),
    ("timestamp(created) < now && now - timestamp(created) > duration('24h')", True, False),
    ("now.getFullYear() == 2026 && now.getHours('+02:00') == 14 && now.getDayOfWeek() == 0", True, True),
    ("string(timestamp(created) + duration('1500ms')) == '2026-01-31T08:00:01.5Z'", True, False),
    ("limits.exists(k, k == 'eu') && limits.eu + limits['us'] == 7", True, False),
    ("flag.key.matches('^c2[0-9]$')", True, True),
    ("[1, 2] + [3] == [1, 2, 3.0] && {'a': 1}.a == 1 && 'a' in {'a': 1}", True, True),
    ("missing == 1 || age == 36", True, False),
    ("!(missing == 1) || !(age == 1)", True, False),
    ("1 / (age - 36) == 1 || 9223372036854775807 + age > 0", False, False),
    ("!(1 / (age - 36) == 1)", False, False),
    ("groups.exists(g, g.x == 1 || g == 'vip')", True, False),
    ("groups.all(g, g.x == 1 && g == 'vip')", False, False),
    ("age.startsWith('3')", False, False),
    # The benchmark's.
    ("plan == 'business' && age >= 18", False, False),
    ("[plan, age] == ['business', 37]", False, False),
    ("groups.exists(g, g.startsWith('sta'))", False, False),
    ("age * 2 + 1 > sessions / 3", False, False),
    ("string(0.1 + 0.2) == '0.30000000000000004' && int(-2.9) == -2", True, True),
    ("[3, 1, 2].map(x, [x, x * x].map(y, y + x)) == [[6, 12], [2, 2], [4, 6]]", True, True),
]


def cel():
    f = File("cel", "Conditions in CEL; hosts have no parser, their trees are in data/cel-trees.json")

    def rule(source):
        return {"enabled": True, "rules": [{"id": "r", "when": {"cel": source}, "serve": {"variant": "on"}}],
                "fallthrough": {"variant": "off"}}

    for index, (source, full, empty) in enumerate(CONDITIONS):
        key = f"c{index}"
        f.boolean(key, rule(source))
        for what, context, holds in [("holds", CONTEXT, full), ("of nothing", {}, empty)]:
            f.case(f"{source}: {what}", key, context, f.on(key) if holds else f.off(key), now=NOW)
    f.boolean("bomb", rule("l.all(a, l.all(b, l.all(c, a + b + c >= 0)))"))
    numbers = list(range(200))
    f.case("a loop in a loop in a loop over a long list stops", "bomb", {"l": numbers}, error("bomb", "GENERAL"), status=400)
    f.case("the same over a short list", "bomb", {"l": numbers[:20]}, f.on("bomb"))
    f.boolean("mixed", {"enabled": True, "rules": [{"id": "r", "when": {"all": [
        {"attr": "age", "op": "gt", "value": 30}, {"not": {"cel": "groups.exists(g, g == 'old')"}}]},
        "serve": {"variant": "on"}}], "fallthrough": {"variant": "off"}})
    f.case("CEL inside of a tree", "mixed", CONTEXT, f.on("mixed"))
    f.case("an error in CEL is false, and a not of the tree around it makes it true", "mixed", {"age": 40, "groups": 3}, f.on("mixed"))
    f.write()


def write():
    cel()
