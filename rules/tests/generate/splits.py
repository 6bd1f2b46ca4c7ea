"""Percentage rollouts: native and vendors' hash profiles, with buckets computed by hashes.py."""

import hashes as h
from corpus import File, code_default, error, js, success
from structure import OFF, ON, conf, eq, rule

ABC = {"a": "A", "b": "B", "c": "C"}
USERS = ["user-1", "user-42", "alice", "bob", "größe-🌊", "日本", "0", "a b", "f47ac10b-58cc-4372-a567-0e02b2c3d479", "x" * 300]


def split(weights=None, **more):
    s = dict(more)
    if weights:
        s["weights"] = weights
    return {"split": s}


def native():
    f = File("splits", "The native split: MurmurHash3 of salt:unit, (hash * total) >> 32 of 100,000")

    def flag(key, config, **definition):
        f.flag(key, "string", {**ABC, "rest": "R"}, config, **definition)

    def expect(key, variant, reason="SPLIT"):
        return success(key, "R" if variant == "rest" else variant.upper(), variant, reason)

    def ask(key, salt, weights, users=USERS):
        names = list(weights)
        for user in users:
            arm = names[h.weighted(h.native(salt, user), list(weights.values()))]
            f.case(f"{key}: {user[:20]} in bucket {h.native(salt, user)} gets {arm}", key, {"targetingKey": user}, expect(key, arm))

    two, three = {"a": 30000, "b": 70000}, {"a": 50000, "b": 30000, "c": 20000}
    flag("two", conf([rule(serve=split(two))], {"variant": "rest"}))
    ask("two", "two", two)
    flag("three", conf([rule(serve=split(three))], {"variant": "rest"}))
    ask("three", "three", three)
    flag("fallthrough", conf(fallthrough=split(three)))
    ask("fallthrough", "fallthrough", three, USERS[:3])
    flag("zero-weight", conf(fallthrough=split({"a": 0, "b": 100000})))
    ask("zero-weight", "zero-weight", {"a": 0, "b": 100000}, USERS[:3])
    flag("flag-salt", conf(fallthrough=split(three)), salt="pepper")
    ask("flag-salt", "pepper", three, USERS[:5])
    flag("split-salt", conf(fallthrough=split(three, salt="own")), salt="pepper")
    ask("split-salt", "own", three, USERS[:5])
    flag("größe/🌊", conf(fallthrough=split(three)))
    ask("größe/🌊", "größe/🌊", three, USERS[:3])
    f.case("flags with other keys cut elsewhere", "three", {"targetingKey": "carol"},
           expect("three", list(three)[h.weighted(h.native("three", "carol"), list(three.values()))]))

    # A border: units found by search so that they lie on either side of 30,000.
    below = next(u for u in (f"n{i}" for i in range(10**7)) if h.native("two", u) == 29999)
    at = next(u for u in (f"n{i}" for i in range(10**7)) if h.native("two", u) == 30000)
    f.case("the last bucket below a bound belongs to the arm", "two", {"targetingKey": below}, expect("two", "a"))
    f.case("the bucket at a bound belongs to the next arm", "two", {"targetingKey": at}, expect("two", "b"))

    # Units.
    flag("by-email", conf(fallthrough=split(three, by="email")))
    for mail in ["a@b.example", "c@d.example"]:
        arm = "abc"[h.weighted(h.native("by-email", mail), list(three.values()))]
        f.case(f"by may name another attribute: {mail}", "by-email", {"email": mail, "targetingKey": "user-1"}, expect("by-email", arm))
    flag("by-path", conf(fallthrough=split(three, by="company.id")))
    arm = "abc"[h.weighted(h.native("by-path", "77"), list(three.values()))]
    f.case("by may be a path, and an integer hashes as its digits", "by-path", {"company": {"id": 77}}, expect("by-path", arm))
    f.case("a string of digits hashes as the integer does", "by-path", {"company": {"id": "77"}}, expect("by-path", arm))
    arm = "abc"[h.weighted(h.native("by-path", "-5"), list(three.values()))]
    f.case("a negative integer is a unit", "by-path", {"company": {"id": -5}}, expect("by-path", arm))
    flag("by-several", conf(fallthrough=split(three, by=["account", "targetingKey"])))
    for context, unit in [({"account": "acc-1", "targetingKey": "user-1"}, "acc-1"), ({"targetingKey": "user-1"}, "user-1"), ({"account": None, "targetingKey": "user-1"}, "user-1")]:
        arm = "abc"[h.weighted(h.native("by-several", unit), list(three.values()))]
        f.case(f"the first of several units that is there is hashed: {js(context)}", "by-several", context, expect("by-several", arm))
    f.case("none of several units is an error", "by-several", {"other": 1}, error("by-several", "TARGETING_KEY_MISSING"), status=400)
    for name, context in [("missing", {}), ("null", {"targetingKey": None}), ("an object", {"targetingKey": {"a": 1}}), ("an array", {"targetingKey": ["a"]}),
                          ("a boolean", {"targetingKey": True}), ("a fraction", {"targetingKey": 1.5}), ("empty", {"targetingKey": ""})]:
        f.case(f"a unit that is {name} is an error", "two", context, error("two", "TARGETING_KEY_MISSING"), status=400)
    flag("missing-skip", conf([rule(serve=split(three, missingUnit="skip"))], {"variant": "rest"}))
    f.case("missingUnit skip goes on to the next rule", "missing-skip", {}, expect("missing-skip", "rest", "DEFAULT"))
    flag("missing-zero", conf([rule(serve=split(three, missingUnit="bucketZero"))], {"variant": "rest"}))
    f.case("missingUnit bucketZero serves the first arm", "missing-zero", {}, expect("missing-zero", "a"))
    flag("missing-on-error", conf([rule(serve=split(three), onError="skip")], {"variant": "rest"}))
    f.case("a missing unit is an error that onError skip skips", "missing-on-error", {}, expect("missing-on-error", "rest", "DEFAULT"))
    flag("only-after-match", conf([rule(eq("x", 1), split(three))], {"variant": "rest"}))
    f.case("a unit is not needed where the rule does not match", "only-after-match", {}, expect("only-after-match", "rest", "DEFAULT"))
    flag("strings", conf(fallthrough=split(three, unitTypes="string")))
    f.case("unitTypes string takes no number", "strings", {"targetingKey": 7}, error("strings", "TARGETING_KEY_MISSING"), status=400)
    arm = "abc"[h.weighted(h.native("strings", "7"), list(three.values()))]
    f.case("unitTypes string takes a string", "strings", {"targetingKey": "7"}, expect("strings", arm))
    flag("any", conf(fallthrough=split(three, unitTypes="any")))
    for value in [True, False, 1.5, -0.25, 7, "seven"]:
        arm = "abc"[h.weighted(h.native("any", value if isinstance(value, str) else js(value)), list(three.values()))]
        f.case(f"unitTypes any hashes {js(value)} as JSON writes it", "any", {"targetingKey": value}, expect("any", arm))
    flag("reason", conf([rule(serve=split(three), reason="TARGETING_MATCH")], {"variant": "rest"}))
    arm = "abc"[h.weighted(h.native("reason", "user-1"), list(three.values()))]
    f.case("a rule's own reason replaces SPLIT", "reason", {"targetingKey": "user-1"}, expect("reason", arm, "TARGETING_MATCH"))

    # Arms.
    flag("thirds", conf(fallthrough=split(arms=[{"serve": {"variant": v}, "weight": 1} for v in "abc"])))
    for user in USERS[:5]:
        arm = "abc"[h.weighted(h.native("thirds", user, 3), [1, 1, 1])]
        f.case(f"arms of weight one cut by their own total: {user}", "thirds", {"targetingKey": user}, expect("thirds", arm))
    flag("arm-kinds", conf([rule(serve=split(arms=[{"serve": "next", "weight": 40000}, {"serve": "codeDefault", "weight": 30000}, {"serve": {"variant": "a"}, "weight": 30000}]))], {"variant": "rest"}))
    for user in USERS[:9]:
        arm = h.weighted(h.native("arm-kinds", user), [40000, 30000, 30000])
        e = [expect("arm-kinds", "rest", "DEFAULT"), code_default("arm-kinds", "SPLIT"), expect("arm-kinds", "a")][arm]
        f.case(f"an arm may go on, or leave the value to the caller: {user[:10]}", "arm-kinds", {"targetingKey": user}, e)

    # Ramps.
    start, end = "2026-03-01T00:00:00Z", "2026-03-05T00:00:00Z"
    ramp = {"from": 0, "to": 100000, "start": start, "end": end}
    flag("ramp", conf([rule(serve=split({"a": 100000}, ramp=ramp))], {"variant": "rest"}))
    flag("ramp-part", conf([rule(serve=split({"a": 100000}, ramp={**ramp, "from": 10000, "to": 50000}))], {"variant": "rest"}))
    flag("ramp-steps", conf([rule(serve=split({"a": 100000}, ramp={**ramp, "stepSeconds": 86400}))], {"variant": "rest"}))
    moments = {"2026-02-01T00:00:00Z": 0, start: 0, "2026-03-02T00:00:00Z": 0.25, "2026-03-03T12:00:00Z": 0.625, end: 1, "2027-01-01T00:00:00Z": 1}
    for now, done in moments.items():
        for user in USERS[:4]:
            for key, share in [("ramp", 100000 * done), ("ramp-part", 10000 + 40000 * done), ("ramp-steps", 100000 * int(done * 4) / 4)]:
                # A place of its own, or a ramp would fill one arm before the next.
                reached = h.native("ramp:" + key, user) < share
                f.case(f"{key} has {'reached' if reached else 'not reached'} {user} at {now}", key, {"targetingKey": user},
                       expect(key, "a") if reached else expect(key, "rest", "DEFAULT"), now=now)
    f.write()


def vendors():
    f = File("splits-vendors", "Vendors' bucketing formulas as data (see rules/tests/data/bucketing-vectors.json for their sources)")
    users = ["user-1", "user-42", "alice", "bob", "größe-🌊", "carol", "dave"]

    def flag(key, serve, salt=None, variants=ABC):
        f.flag(key, "string", {**variants, "rest": "R"}, conf([rule(serve=serve)], {"variant": "rest"}), **({"salt": salt} if salt else {}))

    def ask(key, pick, names="abc", variants=ABC, users=users):
        for user in users:
            i = pick(user)
            e = success(key, "R", "rest", "DEFAULT") if i is None else success(key, variants[names[i]], names[i], "SPLIT")
            f.case(f"{key}: {user} gets {'the fallthrough' if i is None else names[i]}", key, {"targetingKey": user}, e)

    lit = lambda text: {"literal": text}
    arms = lambda weights, names="abc": [{"serve": {"variant": n}, "weight": w} for n, w in zip(names, weights)]
    ld = {"input": ["flagKey", lit("."), "salt", lit("."), "unit"], "algorithm": {"sha1Hex": {"digits": 15}},
          "project": {"divide": {"divisor": 0xFFFFFFFFFFFFFFF}}, "arithmetic": "f32"}
    flag("launchdarkly", split(arms=arms([20000, 30000, 50000]), hash=ld, salt="abc", pastEnd="lastArm", missingUnit="bucketZero"))
    ask("launchdarkly", lambda u: next((i for i, b in enumerate([0.2, 0.5, 1.0]) if h.launchdarkly("launchdarkly", "abc", u) < b), 2))
    f.case("launchdarkly: a missing unit falls into bucket zero", "launchdarkly", {}, success("launchdarkly", "A", "a", "SPLIT"))
    flag("launchdarkly-past-end", split(arms=arms([1, 1, 1]), hash=ld, salt="abc", pastEnd="lastArm"))
    seeded = {**ld, "input": ["seed", lit("."), "unit"]}
    flag("launchdarkly-seed", split(arms=arms([20000, 30000, 50000]), hash=seeded, seed="61", pastEnd="lastArm"))
    import hashlib
    seed61 = lambda u: int(hashlib.sha1(f"61.{u}".encode()).hexdigest()[:15], 16) / 0xFFFFFFFFFFFFFFF
    ask("launchdarkly-seed", lambda u: h.weighted(seed61(u), [0.2, 0.3, 0.5]))
    del f.document["state"]["flags"]["launchdarkly-past-end"]

    unleash = {"input": ["salt", lit(":"), "unit"], "algorithm": {"murmur3": {"seed": 0}}, "project": {"modulo": {"n": 100, "plus": 1}}, "compare": "lessOrEqual"}
    flag("unleash-rollout", split(arms=arms([35]), hash=unleash, salt="group"))
    ask("unleash-rollout", lambda u: 0 if h.unleash_rollout("group", u) <= 35 else None)
    at = next(f"n{i}" for i in range(10**6) if h.unleash_rollout("group", f"n{i}") == 35)
    f.case("unleash-rollout: the bucket at the percentage is in", "unleash-rollout", {"targetingKey": at}, success("unleash-rollout", "A", "a", "SPLIT"))
    variant = {**unleash, "algorithm": {"murmur3": {"seed": 86028157}}, "project": {"modulo": {"n": 0, "plus": 1}}}
    flag("unleash-variant", split(arms=arms([300, 300, 400]), hash=variant, salt="group"))
    ask("unleash-variant", lambda u: next(i for i, b in enumerate([300, 600, 1000]) if h.unleash_variant("group", u, 1000) <= b))

    ranges = lambda bounds, names="abc": [{"serve": {"variant": n}, "ranges": [b]} for n, b in zip(names, bounds)]
    def within(n, bounds):
        return next((i for i, (lo, hi) in enumerate(bounds) if lo <= n < hi), None)
    gb1 = {"input": ["unit", "seed"], "encode": "utf16", "algorithm": "fnv1a32", "project": {"moduloFraction": {"n": 1000}}, "arithmetic": "f64"}
    gb2 = {"input": ["seed", "unit"], "encode": "utf16", "algorithm": "fnv1a32Twice", "project": {"moduloFraction": {"n": 10000}}, "arithmetic": "f64"}
    bounds = [[0, 0.2], [0.3, 0.5], [0.6, 1]]
    flag("growthbook-v1", split(arms=ranges(bounds), hash=gb1, seed="experiment"))
    ask("growthbook-v1", lambda u: within(h.growthbook_v1("experiment", u), bounds))
    flag("growthbook-v2", split(arms=ranges(bounds), hash=gb2, seed="experiment"))
    ask("growthbook-v2", lambda u: within(h.growthbook_v2("experiment", u), bounds))

    eppo = {"input": ["salt", lit("-"), "unit"], "algorithm": "md5Be32", "project": {"modulo": {"n": 10000, "plus": 0}}}
    flag("eppo", split(arms=ranges([[0, 3000], [3000, 6000], [8000, 10000]]), hash=eppo, salt="split",
                       allOf=[{"hash": eppo, "salt": "traffic", "ranges": [[0, 5000], [6000, 9000]]}]))
    def eppo_pick(u):
        t = h.eppo("traffic", u, 10000)
        return within(h.eppo("split", u, 10000), [(0, 3000), (3000, 6000), (8000, 10000)]) if t < 5000 or 6000 <= t < 9000 else None
    ask("eppo", eppo_pick, users=users + [f"subject-{i}" for i in range(8)])

    flipt = {"input": ["flagKey", "unit"], "algorithm": "crc32", "project": {"modulo": {"n": 1000, "plus": 0}}, "arithmetic": "f32", "bound": "truncate"}
    flag("flipt-variant", split(arms=[{"serve": {"variant": n}, "ranges": [b]} for n, b in zip("abc", [[0, 333], [333, 666], [666, 1000]])], hash={**flipt}))
    ask("flipt-variant", lambda u: within(h.flipt_variant("flipt-variant", u), [(0, 333), (333, 666), (666, 1000)]))
    threshold = {"input": ["unit", "flagKey"], "algorithm": "crc32", "project": {"modulo": {"n": 100, "plus": 0}}}
    flag("flipt-threshold", split(arms=arms([40]), hash=threshold))
    ask("flipt-threshold", lambda u: 0 if h.flipt_threshold("flipt-threshold", u) < 40 else None)

    goff = {"input": ["flagKey", "unit"], "algorithm": "fnv1a32", "project": {"modulo": {"n": 0, "plus": 0}}, "order": "nameDescending"}
    flag("goff", split(arms=arms([20000, 30000, 50000]), hash=goff))
    ask("goff", lambda u: "abc".index("cba"[h.weighted(h.goff("goff", u, 100000), [50000, 30000, 20000])]))

    configcat = {"input": ["flagKey", "unit"], "algorithm": {"sha1Hex": {"digits": 7}}, "project": {"modulo": {"n": 100, "plus": 0}}}
    flag("configcat", split(arms=arms([20, 30, 50]), hash=configcat))
    ask("configcat", lambda u: h.weighted(h.configcat("configcat", u), [20, 30, 50]))

    devcycle = {"input": ["unit"], "algorithm": {"murmur3SeededByHash": {"seed": 1}}, "project": {"divide": {"divisor": 4294967295}}, "arithmetic": "f64", "order": "nameDescending"}
    flag("devcycle", split(arms=arms([0.2, 0.3, 0.5]), hash=devcycle, salt="61536f3bc838a705c105eb62"))
    ask("devcycle", lambda u: "abc".index("cba"[h.weighted(h.devcycle("61536f3bc838a705c105eb62", u)[1], [0.5, 0.3, 0.2])]))
    import hashlib as hl
    sha = {"input": ["salt", lit(":"), "unit"], "algorithm": "sha256Be64", "project": {"modulo": {"n": 100, "plus": 0}}}
    flag("sha256", split(arms=arms([20, 30, 50]), hash=sha, salt="s"))
    ask("sha256", lambda u: h.weighted(int.from_bytes(hl.sha256(f"s:{u}".encode()).digest()[:8], "big") % 100, [20, 30, 50]))
    # Each text has a range for itself, of one bucket in a million; between them is nobody's.
    buckets = {name: value % 10**6 for name, value in h.XXH3.items()}
    exact = ranges([[buckets[name], buckets[name] + 1] for name in ("foo", "hello", "test")])
    xxh3 = {"input": ["unit"], "algorithm": "xxh3", "project": {"modulo": {"n": 10**6, "plus": 0}}}
    flag("xxh3", split(arms=exact, hash=xxh3))
    ask("xxh3", lambda u: {"foo": 0, "hello": 1, "test": 2}.get(u), users=["foo", "hello", "test", "hellp"])
    flag("xxh3-utf16", split(arms=exact, hash={**xxh3, "encode": "utf16"}))
    # The units 0x6574 and 0x7473 are the bytes of "test", little endian.
    assert "\u6574\u7473".encode("utf-16-le") == b"test"
    ask("xxh3-utf16", lambda u: {"\u6574\u7473": 2}.get(u), users=["\u6574\u7473", "test"])
    flag("flagd-v1", split(arms=arms([50, 30, 20]), hash={"input": ["unit"], "algorithm": {"murmur3": {"seed": 0}}, "project": "absI32Percent", "arithmetic": "f64"}))
    ask("flagd-v1", lambda u: h.fractional_v1(u, [50, 30, 20]))
    flag("flagd-v2", split(arms=arms([50, 30, 20]), hash={"input": ["flagKey", "unit"], "algorithm": {"murmur3": {"seed": 0}}, "project": "mulShift32"}))
    ask("flagd-v2", lambda u: h.fractional_v2("flagd-v2" + u, [50, 30, 20]))
    flag("flagd-v3", split(arms=arms([50, 30, 20]), hash={"input": ["unit"], "encode": "cbor", "algorithm": {"murmur3": {"seed": 0}}, "project": "mulShift32"}, unitTypes="any"))
    ask("flagd-v3", lambda u: h.fractional_v3(u, [50, 30, 20]))
    for unit in [7, -7, True, 1.5, 65504.0, 0.1]:
        arm = "abc"[h.fractional_v3(unit, [50, 30, 20])]
        f.case(f"flagd-v3: {js(unit)} hashes as deterministic CBOR and gets {arm}", "flagd-v3", {"targetingKey": unit}, success("flagd-v3", ABC[arm], arm, "SPLIT"))
    f.write()


def write():
    native()
    vendors()
