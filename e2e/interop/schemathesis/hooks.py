"""What schemathesis cannot know of Tidegate: names that are there, a wasm body, and that nothing of
another tenant may be in an answer. Loaded through SCHEMATHESIS_HOOKS by tests/schemathesis.rs.

Whatever is chosen here is chosen by what was generated, so that a failure can be played again.
"""

import json
import os
import zlib

import schemathesis
from hypothesis import strategies as st

# Names to try in paths, by placeholder; and text that only the other tenant's state holds.
KNOWN = json.loads(os.environ["TIDEGATE_KNOWN"])
FORBIDDEN = os.environ.get("TIDEGATE_FORBIDDEN", "")
# Of these the place in the path stays as it was generated: they would end the whole run.
LEFT_ALONE = {
    ("DELETE", "/api/v1/namespaces/{namespace}"),
    ("DELETE", "/api/v1/namespaces/{namespace}/environments/{environment}"),
    ("DELETE", "/api/v1/users/{user}"),
    ("PATCH", "/api/v1/users/{user}"),
    ("DELETE", "/api/v1/me/tokens/{id}"),
    ("DELETE", "/api/v1/sessions/{id}"),
    ("DELETE", "/api/v1/sessions/current"),
    ("DELETE", "/api/v1/namespaces/{namespace}/members/{user}"),
    ("PUT", "/api/v1/namespaces/{namespace}/members/{user}"),
}


def pick(value, of):
    return zlib.crc32(repr(value).encode("utf-8", "surrogatepass")) % of


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    operation = context.operation
    if not path_parameters or (operation.method.upper(), operation.path) in LEFT_ALONE:
        return path_parameters
    chosen = dict(path_parameters)
    for name, value in path_parameters.items():
        names = KNOWN.get(name)
        # One in eight stays what it was: most of what there is asks for what is there.
        if names and pick(value, 8):
            chosen[name] = names[pick((name, value), len(names))]
    return chosen


@schemathesis.hook
def map_headers(context, headers):
    if not headers:
        return headers
    chosen = dict(headers)
    for name in list(chosen):
        if name.lower() == "if-match" and pick(chosen[name], 4):
            chosen[name] = "*"
        # Streams and waits would hold each request for as long as they may.
    return chosen


@schemathesis.hook
def map_query(context, query):
    if not query:
        return query
    # `wait=live` waits for edges that are not there.
    return {name: value for name, value in query.items() if name not in ("wait", "timeout")}


@schemathesis.serializer("application/wasm")
def wasm(context, value):
    return value if isinstance(value, bytes) else b"\0asm\1\0\0\0"


schemathesis.openapi.media_type("application/wasm", st.binary(max_size=256))


@schemathesis.check
def nothing_of_another_tenant(context, response, case):
    if FORBIDDEN and FORBIDDEN.encode() in response.content:
        raise AssertionError("the answer holds what is another tenant's")
    for name, values in response.headers.items():
        if FORBIDDEN and any(FORBIDDEN in str(value) for value in values):
            raise AssertionError(f"the header {name} holds what is another tenant's")
