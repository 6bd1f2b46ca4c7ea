"""What surrounds clauses: flags, types, metadata, groups, paths, segments, prerequisites, windows."""

from corpus import File, code_default, error, not_found, success

ON, OFF = {"variant": "on"}, {"variant": "off"}


def conf(rules=(), fallthrough=OFF, enabled=True, **more):
    config = {"enabled": enabled, **more}
    if rules:
        config["rules"] = list(rules)
    config["fallthrough"] = fallthrough
    return config


def eq(attr, value):
    return {"attr": attr, "op": "eq", "value": value}


def rule(when=None, serve=ON, id="r", **more):
    r = {"id": id}
    if when is not None:
        r["when"] = when
    r.update(more)
    r["serve"] = serve
    return r


def types():
    f = File("types", "Flag types, how their values are written, states, reasons without rules")
    f.document["state"]["metadata"] = {}
    for variant, value in [("on", True), ("off", False)]:
        key = f"bool-{variant}"
        f.boolean(key, conf(fallthrough={"variant": variant}))
        f.case(f"a boolean flag serves {str(value).lower()}", key, {}, success(key, value, variant, "STATIC"))
    texts = {"plain": "hello", "empty": "", "unicode": "Grüße 🌊 日本", "escaped": "a\"b\\c\n\t\u0001/", "markup": "<b>&amp;</b>", "number": "3", "rtl": "שלום"}
    for name in texts:
        key = f"text-{name}"
        f.flag(key, "string", texts, conf(fallthrough={"variant": name}))
        f.case(f"a string flag serves the {name} text", key, {}, success(key, texts[name], name, "STATIC"))
    integers = {"three": 3, "zero": 0, "negative": -17, "big": 9007199254740991, "small": -9007199254740991, "i32": 2147483648}
    for name, value in integers.items():
        key = f"int-{name}"
        f.flag(key, "integer", integers, conf(fallthrough={"variant": name}))
        f.case(f"an integer flag writes {value} without a fraction", key, {}, success(key, value, name, "STATIC"), text=f'"value":{value},')
    floats = {"half": 0.5, "three": 3, "three-point": 3.0, "negative": -2.25, "zero": 0, "tenth": 0.1, "third": 0.3333333333333333}
    for name, value in floats.items():
        key = f"float-{name}"
        f.flag(key, "float", floats, conf(fallthrough={"variant": name}))
        written = repr(float(value))
        f.case(f"a float flag writes its variant {name} as {written}", key, {}, success(key, float(value), name, "STATIC"), text=f'"value":{written},')
    f.flag("float-minus-zero", "float", {"z": -0.0}, conf(fallthrough={"variant": "z"}))
    f.case("a float flag keeps the sign of zero", "float-minus-zero", {}, success("float-minus-zero", -0.0, "z", "STATIC"), text='"value":-0.0,')
    for name, value in {"tiny": 5e-324, "huge": 1.7976931348623157e308, "exponent": 1e21}.items():
        key = f"float-{name}"
        f.flag(key, "float", {"v": value}, conf(fallthrough={"variant": "v"}))
        f.case(f"a float flag keeps {value!r} exactly", key, {}, success(key, value, "v", "STATIC"))
    objects = {"empty": {}, "flat": {"a": 1, "b": "x", "c": True, "d": None, "e": 1.5}, "nested": {"list": [1, [2, {"deep": [None]}]], "ä/b": "🌊"}}
    for name, value in objects.items():
        key = f"object-{name}"
        f.flag(key, "object", objects, conf(fallthrough={"variant": name}))
        f.case(f"an object flag serves the {name} object", key, {}, success(key, value, name, "STATIC"))
    for key in ["team/checkout/button", "größe-日本-🌊", "with space", "per%cent", "quo\"te", "a.b.c", "UPPER", "upper"]:
        f.boolean(key, conf(fallthrough=ON))
        f.case(f"the flag key {key} is answered as it is written", key, {}, f.on(key, "STATIC"))
    for missing in ["unknown", "", "team/checkout", "Upper", "a.b"]:
        f.case(f"the flag {missing!r} does not exist", missing, {}, not_found(missing), status=404)
    f.flag("variant-unicode", "string", {"größe/🌊": "x"}, conf(fallthrough={"variant": "größe/🌊"}))
    f.case("a variant's key may be unicode", "variant-unicode", {}, success("variant-unicode", "x", "größe/🌊", "STATIC"))
    f.boolean("default-with-rules", conf([rule(eq("x", 1))]))
    f.case("a flag whose rules did not match gives the reason DEFAULT", "default-with-rules", {}, f.off("default-with-rules"))
    f.boolean("code-default", conf(fallthrough="codeDefault"))
    f.case("a fallthrough without a value leaves it to the caller, reason DEFAULT", "code-default", {}, code_default("code-default", "DEFAULT"))
    f.boolean("rule-code-default", conf([rule(eq("x", 1), "codeDefault")]))
    f.case("a rule may leave the value to the caller", "rule-code-default", {"x": 1}, code_default("rule-code-default", "TARGETING_MATCH"))
    f.case("a rule that leaves the value to the caller can miss", "rule-code-default", {"x": 2}, f.off("rule-code-default"))
    f.boolean("disabled-off", conf(fallthrough=ON, enabled=False, off="off"))
    f.case("a disabled flag serves its off variant", "disabled-off", {}, f.off("disabled-off", "DISABLED"))
    f.boolean("disabled-on", conf(fallthrough=OFF, enabled=False, off="on"))
    f.case("a disabled flag's off variant may be any variant", "disabled-on", {}, f.on("disabled-on", "DISABLED"))
    f.boolean("disabled-nothing", conf(fallthrough=ON, enabled=False))
    f.case("a disabled flag without off variant leaves the value to the caller", "disabled-nothing", {}, code_default("disabled-nothing", "DISABLED"))
    f.boolean("disabled-rules", conf([rule()], enabled=False, off="off"))
    f.case("a disabled flag's rules are not asked", "disabled-rules", {"x": 1}, f.off("disabled-rules", "DISABLED"))
    for clients in ["none", "edge", "local"]:
        key = f"clients-{clients}"
        f.boolean(key, conf(fallthrough=ON), **({} if clients == "none" else {"clients": clients}))
        f.case(f"a server key sees a flag with clients {clients}", key, {}, f.on(key, "STATIC"))
        if clients == "none":
            f.case("to a browser a flag that is not for clients does not exist", key, {}, not_found(key), status=404, audience="browser")
        else:
            f.case(f"a browser key sees a flag with clients {clients}", key, {}, f.on(key, "STATIC"), audience="browser")
    f.boolean("clients-hidden-disabled", conf(enabled=False, off="off"))
    f.case("to a browser a disabled hidden flag does not exist either", "clients-hidden-disabled", {}, not_found("clients-hidden-disabled"), status=404, audience="browser")
    for reason in ["STATIC", "DEFAULT", "TARGETING_MATCH", "SPLIT", "DISABLED"]:
        key = f"reason-{reason.lower()}"
        f.boolean(key, conf([rule(eq("x", 1), reason=reason)]))
        f.case(f"a rule can give the reason {reason} for its match", key, {"x": 1}, f.on(key, reason))
    f.write()


def metadata():
    f = File("metadata", "The flag set's metadata is overlaid with the flag's and the origin's")
    f.document["state"]["metadata"] = {"flagSetId": "shop", "version": 7, "beta": False, "share": 0.5}
    base = {"flagSetId": "shop", "version": 7, "beta": False, "share": 0.5}
    f.boolean("plain", conf(fallthrough=ON))
    f.case("a flag without metadata answers with the set's", "plain", {}, success("plain", True, "on", "STATIC", base))
    f.boolean("own", conf(fallthrough=ON), metadata={"owner": "payments", "version": 8})
    f.case("a flag's metadata overrides the set's", "own", {}, success("own", True, "on", "STATIC", {**base, "owner": "payments", "version": 8}))
    f.boolean("origin", conf(fallthrough=ON, origin={"format": "flagd", "metadata": {"owner": "import", "line": 3}}), metadata={"owner": "payments"})
    f.case("an origin's metadata overrides the definition's", "origin", {}, success("origin", True, "on", "STATIC", {**base, "owner": "import", "line": 3}))
    f.boolean("disabled", conf(fallthrough=ON, enabled=False), metadata={"owner": "x"})
    f.case("a disabled flag answers with its metadata", "disabled", {}, code_default("disabled", "DISABLED", {**base, "owner": "x"}))
    f.boolean("failing", conf([rule(serve={"split": {"by": "targetingKey", "weights": {"on": 50000, "off": 50000}}})]), metadata={"owner": "x"})
    f.case("an error answers with the flag's metadata", "failing", {}, error("failing", "TARGETING_KEY_MISSING", {**base, "owner": "x"}), status=400)
    f.case("an unknown flag answers with empty metadata", "unknown", {}, not_found("unknown"), status=404)
    f.write()


def conditions():
    f = File("conditions", "Groups of conditions, order of rules, paths of attributes")
    a, b = eq("a", 1), eq("b", 1)
    groups = {
        "all": ({"all": [a, b]}, [({"a": 1, "b": 1}, True), ({"a": 1, "b": 2}, False), ({"b": 1}, False), ({}, False)]),
        "any": ({"any": [a, b]}, [({"a": 1, "b": 1}, True), ({"a": 1, "b": 2}, True), ({"b": 1}, True), ({"a": 0, "b": 0}, False), ({}, False)]),
        "not": ({"not": a}, [({"a": 1}, False), ({"a": 2}, True), ({}, True)]),
        "not not": ({"not": {"not": a}}, [({"a": 1}, True), ({"a": 2}, False), ({}, False)]),
        "not all": ({"not": {"all": [a, b]}}, [({"a": 1, "b": 1}, False), ({"a": 1}, True), ({}, True)]),
        "not any": ({"not": {"any": [a, b]}}, [({"a": 1}, False), ({"b": 1}, False), ({}, True)]),
        "any of alls": ({"any": [{"all": [a, b]}, {"all": [eq("c", 1), {"not": b}]}]},
                        [({"a": 1, "b": 1}, True), ({"c": 1}, True), ({"c": 1, "b": 1}, False), ({"a": 1}, False)]),
        "always": ({"always": True}, [({}, True)]),
        "never": ({"always": False}, [({"a": 1}, False)]),
        "all with never": ({"all": [a, {"always": False}]}, [({"a": 1}, False)]),
        "any with always": ({"any": [a, {"always": True}]}, [({}, True)]),
        "single all": ({"all": [a]}, [({"a": 1}, True), ({}, False)]),
    }
    for name, (when, rows) in groups.items():
        key = name.replace(" ", "-")
        f.boolean(key, conf([rule(when)]))
        for context, matches in rows:
            f.case(f"{name} is {str(matches).lower()} for {context}", key, context, f.on(key) if matches else f.off(key))
    f.flag("order", "string", {"one": "1", "two": "2", "rest": "r"}, conf(
        [rule(eq("a", 1), {"variant": "one"}, "first"), rule(eq("b", 1), {"variant": "two"}, "second")], {"variant": "rest"}))
    for context, variant, value in [({"a": 1, "b": 1}, "one", "1"), ({"b": 1}, "two", "2")]:
        f.case(f"the first rule that matches {context} serves {variant}", "order", context, success("order", value, variant, "TARGETING_MATCH"))
    f.case("no rule that matches serves the fallthrough", "order", {}, success("order", "r", "rest", "DEFAULT"))
    f.boolean("no-when", conf([rule()]))
    f.case("a rule without a condition matches every context", "no-when", {}, f.on("no-when"))
    f.boolean("serve-next", conf([rule(serve="next", id="n"), rule(eq("a", 1))]))
    f.case("a rule that serves next goes on", "serve-next", {"a": 1}, f.on("serve-next"))
    f.case("a rule that serves next and nothing after it serves the fallthrough", "serve-next", {}, f.off("serve-next"))
    paths = {
        "user.plan": [({"user": {"plan": "x"}}, True), ({"user.plan": "x"}, True), ({"user.plan": "y", "user": {"plan": "x"}}, False),
                      ({"user.plan": "x", "user": {"plan": "y"}}, True), ({"user": {"plan": "y"}}, False), ({"user": "x"}, False),
                      ({"user": {}}, False), ({"user": None}, False), ({"plan": "x"}, False), ({"user": [{"plan": "x"}]}, False)],
        "a.b.c.d": [({"a": {"b": {"c": {"d": "x"}}}}, True), ({"a": {"b": {"c": "x"}}}, False), ({"a.b.c.d": "x"}, True)],
        "größe": [({"größe": "x"}, True), ({"GRÖSSE": "x"}, False)],
        "with/slash": [({"with/slash": "x"}, True), ({"with": {"slash": "x"}}, False)],
        "with space": [({"with space": "x"}, True)],
        "targetingKey": [({"targetingKey": "x"}, True), ({"targetingKey": "y"}, False), ({}, False)],
        "🌊.ключ": [({"🌊": {"ключ": "x"}}, True)],
    }
    for path, rows in paths.items():
        key = f"path {path}"
        f.boolean(key, conf([rule(eq(path, "x"))]))
        for context, matches in rows:
            f.case(f"the path {path} {'finds' if matches else 'does not find'} x in {context}", key, context, f.on(key) if matches else f.off(key))
    many = {f"attribute-{n}": n for n in range(200)}
    f.boolean("many-attributes", conf([rule(eq("attribute-199", 199))]))
    f.case("an attribute is found among two hundred", "many-attributes", many, f.on("many-attributes"))
    f.boolean("mentions", conf([rule(eq("email", "a@b.example"))]))
    f.case("attribute names differ in letter case", "mentions", {"Email": "a@b.example"}, f.off("mentions"))
    f.write()


def segments():
    f = File("segments", "Segments by id lists, by rules, nested, and several at once")
    f.segment("vips", included=["ann", "bob", "größe-🌊"], excluded=[])
    f.segment("staff", rules=[{"attr": "email", "op": "ends_with", "value": "@corp.example"}, {"attr": "role", "op": "eq", "value": "admin"}])
    f.segment("mixed", rules=[eq("country", "DE")], included=["ann"], excluded=["eve", "both"])
    f.segment("contradictory", included=["both", "ann"], excluded=["both"])
    f.segment("mails", by="email", included=["a@b.example"])
    f.segment("nested", rules=[{"all": [{"segment": "staff"}, {"not": {"segment": "vips"}}]}])
    f.segment("deep", rules=[{"segment": "nested"}])
    f.segment("only-excluded", rules=[{"always": True}], excluded=["eve"])
    f.segment("empty")

    def ask(segment, rows, when=None, label=None):
        label = label or segment
        key = "in-" + label.replace(" ", "-")
        f.boolean(key, conf([rule(when or {"segment": segment})]))
        for context, inside, why in rows:
            f.case(f"{label}: {why}", key, context, f.on(key) if inside else f.off(key))

    t = lambda k, **more: {"targetingKey": k, **more}
    ask("vips", [(t("ann"), True, "an included id is in"), (t("cid"), False, "another id is not"), (t("Ann"), False, "ids differ in letter case"),
                 (t("größe-🌊"), True, "an included unicode id is in"), ({}, False, "a missing targeting key is not in"),
                 (t(""), False, "an empty targeting key is not in"), (t(7), False, "a number that no list holds is not in")])
    ask("staff", [(t("x", email="me@corp.example"), True, "the first rule suffices"), (t("x", role="admin"), True, "the second rule suffices"),
                  ({"role": "admin"}, True, "rules need no targeting key"), (t("x"), False, "no rule matches")])
    ask("mixed", [(t("ann"), True, "included without a rule"), (t("zoe", country="DE"), True, "a rule without being listed"),
                  (t("eve", country="DE"), False, "excluded although a rule matches"), (t("eve"), False, "excluded"), (t("zoe", country="FR"), False, "neither")])
    ask("contradictory", [(t("ann"), True, "included only"), (t("both"), False, "excluded wins over included")])
    ask("mails", [({"email": "a@b.example"}, True, "lists may hold another attribute"), (t("a@b.example"), False, "then the targeting key does not count")])
    ask("nested", [(t("x", role="admin"), True, "in the inner one and not in the excluded one"), (t("ann", role="admin"), False, "in both inner ones"), (t("x"), False, "in neither")])
    ask("deep", [(t("x", role="admin"), True, "two levels down"), (t("ann", role="admin"), False, "not, two levels down")])
    ask("only-excluded", [(t("ann"), True, "everybody but the excluded"), (t("eve"), False, "the excluded"), ({}, True, "nobody can be excluded without an id")])
    ask("empty", [(t("ann"), False, "nobody")])
    ask("any of two", [(t("ann"), True, "in the first"), (t("x", role="admin"), True, "in the second"), (t("x"), False, "in none")], {"segment": ["vips", "staff"]})
    ask("not a segment", [(t("ann"), False, "in it"), (t("x"), True, "not in it"), ({}, True, "no targeting key")], {"not": {"segment": "vips"}})
    ask("all of two", [(t("ann", role="admin"), True, "in both"), (t("ann"), False, "in one")], {"all": [{"segment": "vips"}, {"segment": "staff"}]})
    f.write()


def prerequisites():
    f = File("prerequisites", "Prerequisites of flags and rules: met, unmet, disabled, in chains")
    f.flag("payments", "string", {"up": "u", "down": "d", "part": "p"}, conf([rule(eq("p", "down"), {"variant": "down"}), rule(eq("p", "part"), {"variant": "part"}, "r2")], {"variant": "up"}))
    f.boolean("dead", conf(fallthrough=ON, enabled=False, off="on"))
    f.boolean("silent", conf(fallthrough="codeDefault"))

    def need(key, flag, variants, on_fail=None, **more):
        p = {"flag": flag, "variants": variants}
        if on_fail:
            p["onFail"] = on_fail
        f.boolean(key, conf(fallthrough=ON, off="off", prerequisites=[p], **more))

    need("needs-up", "payments", ["up"])
    f.case("a met prerequisite lets the flag go on", "needs-up", {}, f.on("needs-up", "DEFAULT"))
    f.case("an unmet prerequisite serves the off variant", "needs-up", {"p": "down"}, f.off("needs-up", "DISABLED"))
    need("needs-up-or-part", "payments", ["up", "part"])
    for p, met in [("part", True), ("down", False), ("x", True)]:
        f.case(f"one of several variants is enough, p {p}", "needs-up-or-part", {"p": p}, f.on("needs-up-or-part", "DEFAULT") if met else f.off("needs-up-or-part", "DISABLED"))
    need("needs-dead", "dead", ["on"])
    f.case("a disabled prerequisite is unmet, although its off variant is wanted", "needs-dead", {}, f.off("needs-dead", "DISABLED"))
    need("needs-silent", "silent", ["on", "off"])
    f.case("a prerequisite that serves no variant is unmet", "needs-silent", {}, f.off("needs-silent", "DISABLED"))
    need("default-reason", "payments", ["up"], "offAsDefault")
    f.case("onFail offAsDefault serves the off variant with the reason DEFAULT", "default-reason", {"p": "down"}, f.off("default-reason", "DEFAULT"))
    f.case("onFail offAsDefault changes nothing where it is met", "default-reason", {}, f.on("default-reason", "DEFAULT"))
    need("failing", "payments", ["up"], "fail")
    f.case("onFail fail is an error", "failing", {"p": "down"}, error("failing", "GENERAL"), status=400)
    f.case("onFail fail changes nothing where it is met", "failing", {}, f.on("failing", "DEFAULT"))
    f.boolean("without-off", conf(fallthrough=ON, prerequisites=[{"flag": "payments", "variants": ["up"]}]))
    f.case("an unmet prerequisite without off variant leaves the value to the caller", "without-off", {"p": "down"}, code_default("without-off", "DISABLED"))
    need("chain-2", "needs-up", ["on"])
    need("chain-3", "chain-2", ["on"])
    f.case("a chain of prerequisites holds", "chain-3", {}, f.on("chain-3", "DEFAULT"))
    f.case("a chain of prerequisites breaks at its far end", "chain-3", {"p": "down"}, f.off("chain-3", "DISABLED"))
    f.boolean("two", conf(fallthrough=ON, off="off", prerequisites=[{"flag": "payments", "variants": ["up"]}, {"flag": "needs-up", "variants": ["on"]}]))
    f.case("several prerequisites must all be met", "two", {"p": "part"}, f.off("two", "DISABLED"))
    f.case("several prerequisites that are met let the flag go on", "two", {}, f.on("two", "DEFAULT"))
    f.boolean("with-rules", conf([rule(eq("x", 1), OFF)], ON, off="off", prerequisites=[{"flag": "payments", "variants": ["up"]}]))
    f.case("rules are asked once prerequisites are met", "with-rules", {"x": 1}, f.off("with-rules", "TARGETING_MATCH"))
    f.case("rules are not asked where prerequisites are unmet", "with-rules", {"x": 1, "p": "down"}, f.off("with-rules", "DISABLED"))
    f.boolean("disabled-itself", conf(fallthrough=ON, enabled=False, off="off", prerequisites=[{"flag": "payments", "variants": ["up"], "onFail": "fail"}]))
    f.case("a disabled flag does not ask its prerequisites", "disabled-itself", {"p": "down"}, f.off("disabled-itself", "DISABLED"))
    for on_fail in [None, "fail"]:
        p = {"flag": "payments", "variants": ["up"], **({"onFail": on_fail} if on_fail else {})}
        key = f"rule-{on_fail or 'off'}"
        f.boolean(key, conf([rule(eq("x", 1), prerequisites=[p])]))
        f.case(f"a rule's met prerequisite lets it match, onFail {on_fail}", key, {"x": 1}, f.on(key))
        expect = error(key, "GENERAL") if on_fail else f.off(key)
        f.case(f"a rule's unmet prerequisite, onFail {on_fail}", key, {"x": 1, "p": "down"}, expect, status=400 if on_fail else 200)
        f.case(f"a rule that misses serves the fallthrough, onFail {on_fail}", key, {}, f.off(key))
    f.boolean("rule-skip", conf([rule(eq("x", 1), prerequisites=[{"flag": "payments", "variants": ["up"], "onFail": "fail"}], onError="skip")]))
    f.case("a rule whose prerequisite is an error is skipped with onError skip", "rule-skip", {"x": 1, "p": "down"}, f.off("rule-skip"))
    f.boolean("hidden", conf(fallthrough=ON))
    f.boolean("shown", conf(fallthrough=ON, off="off", prerequisites=[{"flag": "hidden", "variants": ["on"]}]), clients="edge")
    f.case("a browser's flag may depend on one that it cannot see", "shown", {}, f.on("shown", "DEFAULT"), audience="browser")
    f.write()


def windows():
    f = File("windows", "Rules that are active between two times")

    def flag(key, **window):
        f.boolean(key, conf([rule(active=window)]))

    start, end = "2026-03-01T12:00:00Z", "2026-03-02T12:00:00Z"
    flag("both", **{"from": start, "to": end})
    flag("inclusive", **{"from": start, "to": end, "inclusive": True})
    flag("from-only", **{"from": start})
    flag("to-only", to=end)
    flag("offset", **{"from": "2026-03-01T13:00:00+01:00", "to": "2026-03-02T07:00:00-05:00"})
    moments = [("2026-03-01T11:59:59.999Z", "just before from"), (start, "at from"), ("2026-03-02T00:00:00Z", "between"),
               ("2026-03-02T11:59:59.999Z", "just before to"), (end, "at to"), ("2026-03-02T12:00:00.001Z", "just after to"), ("2027-01-01T00:00:00Z", "long after")]
    active = {"both": "0111000", "inclusive": "0111100", "from-only": "0111111", "to-only": "1111000", "offset": "0111000"}
    for key, bits in active.items():
        for (now, when), bit in zip(moments, bits):
            f.case(f"{key}: {when} it is {'active' if bit == '1' else 'not active'}", key, {}, f.on(key) if bit == "1" else f.off(key), now=now)
    f.flag("relay", "string", {"a": "a", "b": "b", "c": "c"}, conf([
        rule(serve={"variant": "a"}, id="one", active={"to": start}), rule(serve={"variant": "b"}, id="two", active={"from": start, "to": end})], {"variant": "c"}))
    for (now, when), v in zip(moments, "abbbccc"):
        f.case(f"windows that meet leave no gap and no overlap {when}", "relay", {}, success("relay", v, v, "DEFAULT" if v == "c" else "TARGETING_MATCH"), now=now)
    f.boolean("with-condition", conf([rule(eq("x", 1), active={"from": start})]))
    f.case("an active rule still needs its condition", "with-condition", {"x": 2}, f.off("with-condition"), now=end)
    f.case("a condition still needs the window", "with-condition", {"x": 1}, f.off("with-condition"), now="2026-01-01T00:00:00Z")
    f.case("condition and window together match", "with-condition", {"x": 1}, f.on("with-condition"), now=end)
    f.write()


def write():
    types()
    metadata()
    conditions()
    segments()
    prerequisites()
    windows()
