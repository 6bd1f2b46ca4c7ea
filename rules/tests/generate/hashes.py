"""Hashes and bucketing formulas, written from their definitions, to compute what the corpus expects."""

import hashlib
import math
import struct
import zlib


def murmur3(data, seed=0):
    if isinstance(data, str):
        data = data.encode()
    mask = 0xFFFFFFFF
    rotl = lambda x, r: ((x << r) | (x >> (32 - r))) & mask
    h = seed
    blocks = len(data) // 4 * 4
    for i in range(0, blocks, 4):
        k = int.from_bytes(data[i:i + 4], "little")
        k = rotl(k * 0xCC9E2D51 & mask, 15) * 0x1B873593 & mask
        h = (rotl(h ^ k, 13) * 5 + 0xE6546B64) & mask
    tail = data[blocks:]
    if tail:
        k = int.from_bytes(tail, "little")
        h ^= rotl(k * 0xCC9E2D51 & mask, 15) * 0x1B873593 & mask
    h ^= len(data)
    h = (h ^ h >> 16) * 0x85EBCA6B & mask
    h = (h ^ h >> 13) * 0xC2B2AE35 & mask
    return h ^ h >> 16


def fnv1a32(units):
    h = 0x811C9DC5
    for u in units:
        h = ((h ^ u) * 0x01000193) & 0xFFFFFFFF
    return h


def utf16(text):
    data = text.encode("utf-16-le")
    return struct.unpack(f"<{len(data) // 2}H", data)


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def native(salt, unit, total=100000):
    return (murmur3(f"{salt}:{unit}") * total) >> 32


# XXH3, 64 bits, seed 0, as published: the reference pages of Tenzir's `hash_xxh3` (foo), of Dragonfly's
# DIGEST (hello, test) and of StarRocks' `xx_hash3_64` (hello, as the signed number -7685981735718036227).
XXH3 = {"foo": 0xAB6E5F64077E7D8A, "hello": 0x9555E8555C62DCFD, "test": 0x9EC9F7918D7DFC40}


def weighted(bucket, weights):
    """The first index whose cumulative weight is above the bucket."""
    total = 0
    for i, w in enumerate(weights):
        total += w
        if bucket < total:
            return i
    return None


def launchdarkly(key, salt, unit):
    n = int(hashlib.sha1(f"{key}.{salt}.{unit}".encode()).hexdigest()[:15], 16)
    return f32(f32(float(n)) / f32(float(0xFFFFFFFFFFFFFFF)))


def unleash_rollout(group, unit):
    return murmur3(f"{group}:{unit}") % 100 + 1


def unleash_variant(group, unit, total):
    return murmur3(f"{group}:{unit}", 86028157) % total + 1


def growthbook_v1(seed, unit):
    return fnv1a32(utf16(unit + seed)) % 1000 / 1000


def growthbook_v2(seed, unit):
    return fnv1a32(utf16(str(fnv1a32(utf16(seed + unit))))) % 10000 / 10000


def eppo(salt, unit, shards):
    return int.from_bytes(hashlib.md5(f"{salt}-{unit}".encode()).digest()[:4], "big") % shards


def flipt_variant(flag, unit):
    return zlib.crc32((flag + unit).encode()) % 1000


def flipt_threshold(flag, unit):
    return zlib.crc32((unit + flag).encode()) % 100


def goff(flag, unit, maximum):
    return fnv1a32((flag + unit).encode()) % maximum


def configcat(key, unit):
    return int(hashlib.sha1((key + unit).encode()).hexdigest()[:7], 16) % 100


def devcycle(target, user):
    seed = murmur3(target, 1)
    return murmur3(user + "_rollout", seed) / 4294967295, murmur3(user, seed) / 4294967295


def cbor(value):
    """Deterministic CBOR (RFC 8949 4.2.1) of what flagd's fractional v3 hashes."""
    def head(major, n):
        if n < 24:
            return bytes([major << 5 | n])
        for extra, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
            if n < 1 << (8 * size):
                return bytes([major << 5 | extra]) + n.to_bytes(size, "big")
        raise ValueError(n)

    if isinstance(value, bool):
        return b"\xf5" if value else b"\xf4"
    if value is None:
        return b"\xf6"
    if isinstance(value, float) and value.is_integer() and -2**63 <= value <= 2**64 - 1:
        value = int(value)
    if isinstance(value, int):
        return head(0, value) if value >= 0 else head(1, -1 - value)
    if isinstance(value, float):
        for code, mark in (("e", 0xF9), ("f", 0xFA), ("d", 0xFB)):
            try:
                packed = struct.pack(">" + code, value)
            except OverflowError:
                continue
            if struct.unpack(">" + code, packed)[0] == value:
                return bytes([mark]) + packed
    if isinstance(value, str):
        data = value.encode()
        return head(3, len(data)) + data
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(cbor, value))
    if isinstance(value, dict):
        entries = sorted((cbor(k), cbor(v)) for k, v in value.items())
        return head(5, len(entries)) + b"".join(k + v for k, v in entries)
    raise TypeError(value)


def fractional_v1(text, weights):
    h = murmur3(text)
    h = h - 2**32 if h >= 2**31 else h
    b = abs(h) / 2147483647 * 100
    total, reached = sum(weights), 0.0
    for i, w in enumerate(weights):
        reached += 100 * w / total
        if b < reached:
            return i
    return None


def fractional_v2(text, weights):
    return weighted((murmur3(text) * sum(weights)) >> 32, weights)


def fractional_v3(value, weights):
    return weighted((murmur3(cbor(value)) * sum(weights)) >> 32, weights)


def check():
    """Against published vectors (rules/tests/data/bucketing-vectors.json)."""
    import json
    import pathlib
    rows = json.loads((pathlib.Path(__file__).resolve().parent.parent / "data/bucketing-vectors.json").read_text())
    by = {
        "murmur3_x86_32": lambda i: murmur3(i["bytes_utf8"], i["seed"]),
        "flagd-fractional-v1": lambda i: fractional_v1(i["value"], i["weights"]),
        "flagd-fractional-v2": lambda i: fractional_v2(i["value"], i["weights"]),
        "flagd-fractional-v3": lambda i: fractional_v3(i["value"], i["weights"]),
        "flagd-fractional-v3-implicit": lambda i: fractional_v3([i["flag"], i["targetingKey"]], i["weights"]),
        "unleash-rollout": lambda i: unleash_rollout(i["groupId"], i["unit"]),
        "unleash-variant": lambda i: unleash_variant(i["groupId"], i["unit"], i["total_weight"]),
        "launchdarkly-salt": lambda i: launchdarkly(i["key"], i["salt"], i["unit"]),
        "growthbook-v1": lambda i: growthbook_v1(i["seed"], i["unit"]),
        "growthbook-v2": lambda i: growthbook_v2(i["seed"], i["unit"]),
        "eppo-md5-shard": lambda i: eppo(i["salt"], i["subject"], i["totalShards"]),
        "flipt-variant-crc32": lambda i: flipt_variant(i["flag"], i["entityId"]),
        "flipt-threshold-crc32": lambda i: flipt_threshold(i["flag"], i["entityId"]),
        "goff-fnv1a32": lambda i: goff(i["flag"], i["key"], i["max"]),
        "configcat-sha1": lambda i: configcat(i["key"], i["unit"]),
        "devcycle": lambda i: dict(zip(("rollout", "variation"), devcycle(i["target"], i["user"]))),
    }
    checked = 0
    for row in rows:
        if row["profile"] in by:
            got = by[row["profile"]](row["inputs"])
            close = got == row["expected"] or (isinstance(got, float) and math.isclose(got, row["expected"], rel_tol=1e-6))
            assert close, (row, got)
            checked += 1
    print(f"hashes agree with {checked} of {len(rows)} published vectors")
