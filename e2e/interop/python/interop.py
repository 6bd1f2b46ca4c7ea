"""The Python OFREP provider against a running edge. Run by e2e/tests/interop_python.rs."""

import json
import os
import time
import unittest
import urllib.parse
import urllib.request

from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason

EDGE_URL = os.environ["EDGE_URL"]
SERVER_KEY = os.environ["SERVER_KEY"]
USER = EvaluationContext("user-1", {"email": "ann@example.com", "age": 30})


def provider(key):
    # By default 5 s, which a busy machine may take.
    return OFREPProvider(EDGE_URL, headers_factory=lambda: {"Authorization": f"Bearer {key}"}, timeout=60.0)


def serve(flag, variant):
    """Sets the variant that a flag serves to everybody, as an admin would."""
    url = f"{os.environ['CONTROL_URL']}{os.environ['ENVIRONMENT_PATH']}/flags/{urllib.parse.quote(flag, safe='')}"
    body = json.dumps({"enabled": True, "fallthrough": {"variant": variant}}).encode()
    headers = {"Authorization": f"Bearer {os.environ['ADMIN_TOKEN']}", "Content-Type": "application/json", "If-Match": "*"}
    urllib.request.urlopen(urllib.request.Request(url, body, headers, method="PUT")).read()


class Interop(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        api.set_provider(provider(SERVER_KEY))
        cls.client = api.get_client()

    @classmethod
    def tearDownClass(cls):
        api.shutdown()

    def check(self, details, value, variant, reason):
        self.assertIsNone(details.error_code, details.error_message)
        self.assertEqual((details.value, details.variant, details.reason), (value, variant, reason))
        self.assertIs(type(details.value), type(value))

    def test_every_type_resolves_with_variant_and_reason(self):
        c = self.client
        self.check(c.get_boolean_details("interop-bool", False, USER), True, "on", Reason.STATIC)
        self.check(c.get_string_details("interop-string", "", USER), "Grüße 🌊", "greeting", Reason.STATIC)
        self.check(c.get_integer_details("interop-int", 0, USER), 42, "answer", Reason.STATIC)
        self.check(c.get_float_details("interop-float", 0.0, USER), 0.5, "half", Reason.STATIC)
        self.check(c.get_object_details("interop-object", {}, USER), {"title": "T", "sizes": [1, 2.5], "nested": {"on": True}}, "page", Reason.STATIC)

    def test_a_whole_float_is_a_float(self):
        # The provider is strict: 3 would be an int to it, so the edge must write 3.0.
        self.check(self.client.get_float_details("interop-float-whole", 0.0, USER), 3.0, "three", Reason.STATIC)

    def test_metadata_arrives(self):
        metadata = self.client.get_boolean_details("interop-bool", False, USER).flag_metadata
        for key, value in {"owner": "interop", "priority": 3, "ratio": 0.5, "beta": True}.items():
            self.assertEqual(metadata[key], value)

    def test_targeting_and_splits(self):
        c = self.client
        self.check(c.get_string_details("interop-targeted", "", USER), "e", "express", Reason.TARGETING_MATCH)
        other = EvaluationContext("user-1", {"email": "ann@other.example", "age": 30})
        self.check(c.get_string_details("interop-targeted", "", other), "c", "classic", Reason.DEFAULT)
        split = c.get_string_details("interop-split", "", USER)
        self.assertEqual(split.reason, Reason.SPLIT)
        self.assertEqual(split.value, split.variant.upper())

    def test_no_value_means_the_callers_default(self):
        self.check(self.client.get_string_details("interop-code-default", "mine", USER), "mine", "", Reason.DEFAULT)

    def test_a_disabled_flag(self):
        self.check(self.client.get_boolean_details("interop-off", True, USER), False, "off", Reason.DISABLED)

    def test_a_key_with_slashes_is_sent_unescaped_and_found(self):
        self.check(self.client.get_boolean_details("interop/team ä/slash", False, USER), True, "on", Reason.STATIC)

    def test_errors(self):
        missing = self.client.get_boolean_details("interop-none", True, USER)
        self.assertEqual((missing.value, missing.error_code), (True, ErrorCode.FLAG_NOT_FOUND))
        mismatch = self.client.get_boolean_details("interop-string", True, USER)
        self.assertEqual((mismatch.value, mismatch.error_code), (True, ErrorCode.TYPE_MISMATCH))
        keyless = self.client.get_string_details("interop-split", "none", EvaluationContext(attributes={"a": 1}))
        self.assertEqual((keyless.value, keyless.error_code), ("none", ErrorCode.TARGETING_KEY_MISSING))

    def test_no_context_at_all_is_accepted(self):
        self.check(self.client.get_string_details("interop-targeted", ""), "c", "classic", Reason.DEFAULT)

    def test_a_bad_key_is_an_error(self):
        api.set_provider(provider(SERVER_KEY + "x"), "bad")
        details = api.get_client("bad").get_boolean_details("interop-bool", False, USER)
        self.assertEqual((details.value, details.error_code, details.error_message), (False, ErrorCode.GENERAL, "unauthorized"))

    def test_a_change_is_served_without_a_restart(self):
        for variant in ("before", "after"):
            serve("interop-change", variant)
            deadline = time.monotonic() + 60
            while (seen := self.client.get_string_value("interop-change", "", USER)) != variant:
                self.assertLess(time.monotonic(), deadline, f"last seen: {seen}")
                time.sleep(0.02)


if __name__ == "__main__":
    unittest.main(verbosity=2)
