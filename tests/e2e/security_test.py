"""Who may call whom: certificates, roles, tokens, and what happens when their files change."""

import contextlib
import pathlib
import socket
import ssl
import tempfile
import time
import unittest

import grpc

from certificates import Certificates, handshake, openssl, replace
from harness import (BIN, MODEL, PATIENCE, Pipeline, Process, admin_pb2, admin_pb2_grpc,
                     control_pb2_grpc, expect_code, inference_pb2, inference_pb2_grpc, run,
                     wait_until)

TOKEN = "client-token-0123456789"
OPERATOR_TOKEN = "operator-token-0123456789"
STAGE_TOKEN = "stage-token-0123456789"
CHANNEL_OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]


def credentials(certificates, name=None, ca=None):
    """Of a client that is `name`, nobody by default, and trusts the CA, of `certificates` too."""
    return grpc.ssl_channel_credentials(
        root_certificates=(ca or certificates).read("ca.pem"),
        private_key=certificates.read(f"{name}.key") if name else None,
        certificate_chain=certificates.read(f"{name}.pem") if name else None)


@contextlib.contextmanager
def dial(address, who):
    with grpc.secure_channel(address, who, options=CHANNEL_OPTIONS) as channel:
        yield channel


def get_model(channel, metadata=None):
    stub = inference_pb2_grpc.InferenceStub(channel)
    return stub.GetModel(inference_pb2.GetModelRequest(), timeout=10 * PATIENCE, metadata=metadata)


def get_pipeline(channel, metadata=None):
    stub = admin_pb2_grpc.AdminStub(channel)
    return stub.GetPipeline(admin_pb2.GetPipelineRequest(), timeout=10 * PATIENCE,
                            metadata=metadata)


def join(channel, metadata=None):
    """Joins and leaves at once, before it said what it is."""
    stub = control_pb2_grpc.ControlStub(channel)
    return list(stub.Join(iter(()), timeout=10 * PATIENCE, metadata=metadata))


def bearer(token):
    return [("authorization", f"Bearer {token}")]


CALLS = {"client": get_model, "operator": get_pipeline, "stage": join}


class TestFolder(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory(
            prefix="stagecoach-security-")))
        cls.certificates = Certificates(cls.folder / "tls")
        cls.strangers = Certificates(cls.folder / "strangers")


class MutualTlsTest(TestFolder):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        c = cls.certificates
        c.make("--only", "all", "--roles", "client,operator,stage")
        c.expired("old", "client")
        cls.pipeline = cls.enterClassContext(Pipeline(
            coordinator=c.options("coordinator"), stage=c.options("stage"),
            channel=lambda address: grpc.secure_channel(address, credentials(c, "all"),
                                                        options=CHANNEL_OPTIONS)))
        cls.address = cls.pipeline.address
        cls.port = cls.address.rsplit(":", 1)[1]

    def test_stages_join_and_answer_over_mutual_tls(self):
        self.assertIn("72", self.pipeline.generate().text)
        self.assertEqual(len(self.pipeline.pipeline().stages), 2)

    def test_each_role_opens_its_own_services_only(self):
        for role in ("client", "operator", "stage", "all"):
            with dial(self.address, credentials(self.certificates, role)) as channel:
                for needed, call in CALLS.items():
                    with self.subTest(role=role, service=needed):
                        if role in (needed, "all"):
                            call(channel)
                        else:
                            with expect_code(self, grpc.StatusCode.PERMISSION_DENIED,
                                             f"needs the role {needed}", f"'{role}' has {role}"):
                                call(channel)

    def test_a_certificate_without_a_role_opens_nothing(self):
        # The coordinator's own has none, and is not for clients either.
        for name in ("coordinator", None):
            with dial(self.address, credentials(self.certificates, name)) as channel:
                for call in CALLS.values():
                    with expect_code(self, grpc.StatusCode.UNAVAILABLE):
                        call(channel)

    def test_strangers_and_expired_certificates_get_no_connection(self):
        mine, theirs = self.certificates, self.strangers
        for who in (credentials(theirs, "client", ca=mine), credentials(mine, "old")):
            with dial(self.address, who) as channel:
                with expect_code(self, grpc.StatusCode.UNAVAILABLE):
                    get_model(channel)

    def test_clients_refuse_a_server_of_another_authority_or_name(self):
        result = self.verb("status", "--tls-cert", self.certificates.path("operator.pem"),
                           "--tls-key", self.certificates.path("operator.key"), "--tls-ca",
                           self.strangers.path("ca.pem"))
        self.assertEqual(result.returncode, 1)
        self.assertIn("certificate verify failed", result.stderr)
        result = self.verb("status", *self.certificates.options("operator"), "--tls-server-name",
                           "head.example")
        self.assertEqual(result.returncode, 1)
        self.assertIn("head.example is not in peer certificate", result.stderr)
        result = self.verb("status", *self.certificates.options("operator"), "--tls-server-name",
                           "localhost")
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_plaintext_and_old_tls_get_no_connection(self):
        with grpc.insecure_channel(self.address, options=CHANNEL_OPTIONS) as channel:
            with expect_code(self, grpc.StatusCode.UNAVAILABLE):
                get_model(channel)
        who = ["-cert", self.certificates.path("client.pem"), "-key",
               self.certificates.path("client.key")]
        for version in ("-tls1_3", "-tls1_2"):
            self.assertIn("CONNECTION ESTABLISHED", handshake(self.port, *who, version))
        for old in ("-tls1_1", "-tls1"):
            said = handshake(self.port, *who, old, "-cipher", "ALL:@SECLEVEL=0")
            self.assertNotIn("CONNECTION ESTABLISHED", said)
            self.assertNotIn("no protocols available", said)  # so it was the server's choice

    def verb(self, verb, *options, stdin=""):
        return run(BIN / "stagecoach", verb, "--coordinator", self.address, "--retry-seconds", 0,
                   *options, stdin=stdin)

    def test_verbs_call_with_a_certificate(self):
        client, operator = (self.certificates.options(role) for role in ("client", "operator"))
        result = self.verb("generate", *client, "--max-tokens", 3, "--json", "2 plus 2 is")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn('"stages":null', result.stdout)
        self.assertEqual(self.verb("model", *client).returncode, 0)
        self.assertEqual(self.verb("tokenize", *client, "text").returncode, 0)
        self.assertEqual(self.verb("detokenize", *client, "5,6").returncode, 0)
        self.assertEqual(self.verb("status", *operator).returncode, 0)
        trace = self.folder / "trace.json"
        self.assertEqual(self.verb("trace", *operator, "--seconds", 0.1, trace).returncode, 0)
        result = self.verb("status", *client)
        self.assertEqual(result.returncode, 1)
        self.assertIn("stagecoach.v1.Admin needs the role operator, 'client' has client "
                      "(PERMISSION_DENIED)", result.stderr)

    def test_the_log_names_who_called(self):
        with dial(self.address, credentials(self.certificates, "client")) as channel:
            get_model(channel)
        wait_until(lambda: "caller=client" in self.pipeline.coordinator.log(), 10,
                   "the log has the caller")

    def test_a_stage_with_a_clients_certificate_does_not_join(self):
        stage = self.pipeline.add_stage("impostor", *self.certificates.options("client"))
        try:
            wait_until(lambda: "needs the role stage" in stage.log(), 20, "the stage says why")
            self.assertNotIn("impostor", [s.name for s in self.pipeline.pipeline().stages])
        finally:
            self.pipeline.kill_stage(stage)


class ChangeTest(TestFolder):
    """Files that change while the programs run."""

    def setUp(self):
        # What the programs use lies in a folder of its own, and is replaced from there.
        self.live = self.folder / self.id().rsplit(".", 1)[1]
        self.live.mkdir()
        self.next = Certificates(self.folder / f"next-{self.live.name}")
        for name in ("ca", "coordinator", "stage", "client", "all"):
            if name == "all":
                self.certificates.make("--only", "all", "--roles", "client,operator,stage")
            for suffix in ("pem", "key"):
                replace(self.live / f"{name}.{suffix}", self.certificates.read(f"{name}.{suffix}"))

    def options(self, name):
        return ["--tls-cert", self.live / f"{name}.pem", "--tls-key", self.live / f"{name}.key",
                "--tls-ca", self.live / "ca.pem"]

    def start(self, **how):
        c = self.certificates
        both = c.read("ca.pem") + self.next.read("ca.pem")
        who = grpc.ssl_channel_credentials(root_certificates=both, private_key=c.read("all.key"),
                                           certificate_chain=c.read("all.pem"))
        return Pipeline(coordinator=self.options("coordinator"), stage=self.options("stage"),
                        channel=lambda address: grpc.secure_channel(address, who,
                                                                    options=CHANNEL_OPTIONS), **how)

    def replace(self, name, certificates):
        for suffix in ("key", "pem"):
            replace(self.live / f"{name}.{suffix}", certificates.read(f"{name}.{suffix}"))

    def served_certificate(self, pipeline):
        """What a new connection is shown, in PEM."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(self.certificates.path("client.pem"),
                                self.certificates.path("client.key"))
        context.set_alpn_protocols(["h2"])
        host, port = pipeline.address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=10 * PATIENCE) as plain:
            with context.wrap_socket(plain) as secure:
                return ssl.DER_cert_to_PEM_cert(secure.getpeercert(binary_form=True)).encode()

    def wait_read(self, process, count=1):
        wait_until(lambda: process.log().count("certificates: read again") >= count, 10,
                   f"{process.name} reads its certificates again")

    def test_streams_go_on_while_the_authority_is_replaced(self):
        with self.start(stages=1, wanted=2, wait=False) as pipeline:
            # Its answer begins when the second stage has joined.
            stream = pipeline.stream()
            wait_until(lambda: pipeline.pipeline().request_waiting_count == 1, 10, "it waits")
            wait_until(lambda: pipeline.pipeline().stages, 10, "the first stage joins")
            first_stage = pipeline.pipeline().stages[0].stage_id
            self.assertEqual(self.served_certificate(pipeline),
                             self.certificates.read("coordinator.pem"))
            # First all trust both authorities, then all show certificates of the new one.
            replace(self.live / "ca.pem",
                    self.certificates.read("ca.pem") + self.next.read("ca.pem"))
            for process in pipeline.processes():
                self.wait_read(process)
            self.replace("stage", self.next)
            self.replace("coordinator", self.next)
            wait_until(lambda: self.served_certificate(pipeline) == self.next.read("coordinator.pem"),
                       10, "new connections see the new certificate")
            pipeline.add_stage("late")
            self.assertIn("72", "".join(message.text for message in stream))
            stages = pipeline.pipeline().stages
            self.assertEqual(len(stages), 2)
            self.assertEqual(stages[0].stage_id, first_stage)  # its stream was not broken
            # Now the old authority goes: who has a certificate of it does not get in again.
            replace(self.live / "ca.pem", self.next.read("ca.pem"))
            old = credentials(self.certificates, "client", ca=self.next)
            wait_until(lambda: not self.is_let_in(pipeline.address, old), 10, "the old is refused")
            self.assertTrue(self.is_let_in(pipeline.address, credentials(self.next, "client")))
            self.assertIn("72", pipeline.generate().text)  # over the old connections

    @staticmethod
    def is_let_in(address, who):
        """Over a new connection."""
        with dial(address, who) as channel:
            try:
                get_model(channel)
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.UNAVAILABLE, error
                return False
            return True

    def test_a_stage_dials_again_with_its_new_certificate(self):
        with self.start(stages=1) as pipeline:
            self.replace("stage", self.next)
            replace(self.live / "ca.pem",
                    self.certificates.read("ca.pem") + self.next.read("ca.pem"))
            for process in pipeline.processes():
                self.wait_read(process)
            # Only the new authority from here on: the old certificate would not do.
            replace(self.live / "ca.pem", self.next.read("ca.pem"))
            self.replace("coordinator", self.next)
            for process in pipeline.processes():
                self.wait_read(process, count=2)
            pipeline.coordinator.kill()
            pipeline.coordinator = Process(
                "coordinator-again", BIN / "stagecoach-coordinator", "--model", MODEL, "--stages",
                1, "--listen", pipeline.address, *self.options("coordinator"))
            who = credentials(self.next, "client")
            wait_until(lambda: self.is_let_in(pipeline.address, who), 10, "the coordinator is back")
            with dial(pipeline.address, who) as channel:
                stub = inference_pb2_grpc.InferenceStub(channel)
                request = inference_pb2.GenerateRequest(text="2 plus 2 is",
                                                        stop={"max_tokens": 2})
                self.assertTrue(list(stub.Generate(request, timeout=30 * PATIENCE)))

    def test_a_bad_change_is_said_once_and_changes_nothing(self):
        with self.start(stages=1) as pipeline:
            log = pipeline.coordinator.log
            good = self.certificates.read("coordinator.pem")
            replace(self.live / "coordinator.key", self.next.read("coordinator.key"))
            wait_until(lambda: "what was read before stays" in log(), 10, "it is said")
            time.sleep(2.5)
            self.assertEqual(log().count("what was read before stays"), 1)
            self.assertIn(f"--tls-key: {self.live}/coordinator.key: is not the key of the "
                          f"certificate in {self.live}/coordinator.pem", log())
            self.assertEqual(self.served_certificate(pipeline), good)
            (self.live / "coordinator.pem").unlink()
            wait_until(lambda: "coordinator.pem: No such file" in log(), 10, "it is said")
            self.assertEqual(self.served_certificate(pipeline), good)
            replace(self.live / "coordinator.pem", self.next.read("coordinator.pem"))
            self.wait_read(pipeline.coordinator)
            self.assertEqual(self.served_certificate(pipeline), self.next.read("coordinator.pem"))


class TokenTest(TestFolder):
    def setUp(self):
        self.tokens = self.folder / f"tokens-{self.id().rsplit('.', 1)[1]}"
        self.write_tokens(f"{TOKEN} web\n{OPERATOR_TOKEN} ops operator\n{STAGE_TOKEN} s stage\n")

    def write_tokens(self, text):
        replace(self.tokens, f"# callers\n{text}".encode())

    def own(self, token):
        path = self.folder / f"own-{token}"
        path.write_text(token + "\n")
        return path

    def check_calls(self, channel):
        code = grpc.StatusCode
        get_model(channel, bearer(TOKEN))
        get_pipeline(channel, bearer(OPERATOR_TOKEN))
        get_model(channel, [("authorization", f"bearer {TOKEN}")])
        with expect_code(self, code.PERMISSION_DENIED, "needs the role operator", "'web' has client"):
            get_pipeline(channel, bearer(TOKEN))
        with expect_code(self, code.PERMISSION_DENIED, "needs the role stage"):
            join(channel, bearer(TOKEN))
        for call in CALLS.values():
            with expect_code(self, code.UNAUTHENTICATED, "the call has none", "bearer token"):
                call(channel)
            for wrong in (TOKEN[:-1], TOKEN + "0", "", "x" * 4096):
                with expect_code(self, code.UNAUTHENTICATED, "not one that this server knows"):
                    call(channel, bearer(wrong))
            with expect_code(self, code.UNAUTHENTICATED, "must be 'Bearer TOKEN'"):
                call(channel, [("authorization", "Basic d2ViOnB3")])

    def test_tokens_stand_for_clients_over_tls(self):
        c = self.certificates
        c.make("--only", "all", "--roles", "client,operator,stage")
        how = dict(coordinator=[*c.options("coordinator"), "--tokens", self.tokens],
                   stage=c.options("stage"),
                   channel=lambda address: grpc.secure_channel(address, credentials(c, "all"),
                                                               options=CHANNEL_OPTIONS))
        with Pipeline(stages=1, **how) as pipeline:
            with dial(pipeline.address, credentials(c)) as channel:
                self.check_calls(channel)
            # Certificates go on to do, and to be checked; a token adds to them.
            with dial(pipeline.address, credentials(c, "client")) as channel:
                get_model(channel)
                get_pipeline(channel, bearer(OPERATOR_TOKEN))
                with expect_code(self, grpc.StatusCode.UNAUTHENTICATED):
                    get_model(channel, bearer("unknown-unknown-unknown"))
            with dial(pipeline.address, credentials(self.strangers, "client", ca=c)) as channel:
                with expect_code(self, grpc.StatusCode.UNAVAILABLE):
                    get_model(channel, bearer(TOKEN))
            result = run(BIN / "stagecoach", "generate", "--coordinator", pipeline.address,
                         "--tls-ca", c.path("ca.pem"), "--token-file", self.own(TOKEN),
                         "--max-tokens", 2, "2 plus 2 is")
            self.assertEqual(result.returncode, 0, result.stderr)
            for secret in (TOKEN, OPERATOR_TOKEN, STAGE_TOKEN):
                self.assertNotIn(secret, pipeline.coordinator.log())

    def test_tokens_on_plaintext_loopback_and_their_changes(self):
        operator = self.own(OPERATOR_TOKEN)
        with Pipeline(stages=1, coordinator=["--tokens", self.tokens], wait=False,
                      stage=["--token-file", self.own(STAGE_TOKEN)]) as pipeline:
            channel = pipeline.channel
            self.check_calls(channel)
            wait_until(lambda: get_pipeline(channel, bearer(OPERATOR_TOKEN)).state ==
                       admin_pb2.PIPELINE_STATE_RUNNING, 20, "the stage joined with its token")
            self.write_tokens(f"{TOKEN}-new web\n{OPERATOR_TOKEN} ops operator,client\n")
            wait_until(lambda: "--tokens: read again" in pipeline.coordinator.log(), 10, "read")
            get_model(channel, bearer(f"{TOKEN}-new"))
            get_model(channel, bearer(OPERATOR_TOKEN))
            with expect_code(self, grpc.StatusCode.UNAUTHENTICATED):
                get_model(channel, bearer(TOKEN))
            self.write_tokens("short\n")
            wait_until(lambda: "line 2: the token has 5 bytes" in pipeline.coordinator.log(), 10,
                       "the bad file is named")
            get_model(channel, bearer(f"{TOKEN}-new"))
            result = run(BIN / "stagecoach", "status", "--coordinator", pipeline.address,
                         "--token-file", operator)
            self.assertEqual(result.returncode, 0, result.stderr)

    def test_a_token_is_not_sent_in_plaintext_beyond_loopback(self):
        for verb in (["stagecoach", "status"], ["stagecoach-stage"]):
            result = run(BIN / verb[0], *verb[1:], "--coordinator", "192.0.2.1:7070",
                         "--token-file", self.own(TOKEN))
            self.assertEqual(result.returncode, 1)
            self.assertIn("could be read on the way to 192.0.2.1:7070: 192.0.2.1 is not loopback; "
                          "give --tls-ca, or --insecure", result.stderr)


class StartTest(TestFolder):
    """What is wrong is said at the start."""

    def refused(self, *options, listen="127.0.0.1:0"):
        result = run(BIN / "stagecoach-coordinator", "--model", MODEL, "--listen", listen, *options)
        self.assertEqual(result.returncode, 1, result.stderr)
        return result.stderr

    def test_plaintext_listens_on_loopback_only(self):
        for listen in ("0.0.0.0:0", "[::]:0", ":0"):
            sentence = self.refused(listen=listen)
            for word in (f"cannot listen on {listen}", "--tls-cert", "--insecure"):
                self.assertIn(word, sentence)
        self.assertIn("192.0.2.7 is not loopback", self.refused(listen="192.0.2.7:0"))
        for listen in ("127.0.0.2:0", "localhost:0", f"unix:{self.folder}/socket"):
            with Pipeline(stages=0, wanted=1, wait=False, coordinator=["--listen", listen]):
                pass
        with Pipeline(stages=0, wanted=1, wait=False,
                      coordinator=["--listen", "0.0.0.0:0", "--insecure"]):
            pass

    def test_files_that_will_not_do_are_named(self):
        c = self.certificates
        c.expired("old", "coordinator")
        cert, key, ca = c.path("coordinator.pem"), c.path("coordinator.key"), c.path("ca.pem")
        locked, weak, empty = (self.folder / name for name in ("locked.key", "weak.key", "empty"))
        openssl("ec", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked)
        openssl("req", "-x509", "-newkey", "rsa:1024", "-nodes", "-keyout", weak, "-out",
                self.folder / "weak.pem", "-subj", "/CN=weak", "-days", 1)
        empty.write_text("")
        cases = [
            ((cert, None, None), "--tls-cert is given without --tls-key"),
            ((None, key, None), "--tls-key is given without --tls-cert"),
            ((cert, key, None), "--tls-cert is given without --tls-ca"),
            ((None, None, ca), "--tls-ca is given without --tls-cert and --tls-key"),
            (("/nowhere", key, ca), "--tls-cert: /nowhere: No such file or directory"),
            ((cert, key, self.folder), f"--tls-ca: {self.folder}: not a regular file"),
            ((cert, c.path("client.key"), ca), f"client.key: is not the key of the certificate in "
                                               f"{cert}"),
            ((key, key, ca), f"--tls-cert: {key}: has no certificate in PEM"),
            ((cert, cert, ca), f"--tls-key: {cert}: has no private key in PEM"),
            ((cert, locked, ca), f"--tls-key: {locked}: has no private key in PEM that can be read "
                                 "without a password"),
            ((cert, key, empty), f"--tls-ca: {empty}: has no certificate in PEM"),
            ((c.path("old.pem"), c.path("old.key"), ca), "old.pem: the certificate expired at 20"),
            ((self.folder / "weak.pem", weak, ca), "weak.pem: OpenSSL does not take this "
                                                   "certificate: ee key too small"),
        ]
        for paths, sentence in cases:
            with self.subTest(sentence):
                options = [word for option, path in zip(("--tls-cert", "--tls-key", "--tls-ca"), paths)
                           if path for word in (option, path)]
                self.assertIn(sentence, self.refused(*options))
        self.assertIn("--tokens: /nowhere: No such file", self.refused("--tokens", "/nowhere"))
        self.assertIn("has no token", self.refused("--tokens", empty))


if __name__ == "__main__":
    unittest.main()
