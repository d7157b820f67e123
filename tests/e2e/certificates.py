"""Certificates for tests: made by deploy/certificates, and those that it would not make."""

import pathlib
import shutil
import subprocess

from processes import SOURCE, run


def openssl(*words):
    result = run("openssl", *words)
    if result.returncode != 0:
        raise AssertionError(f"openssl {' '.join(map(str, words))}:\n{result.stderr}")
    return result.stdout


class Certificates:
    """A folder with an authority, and certificates of every role that it signed."""

    def __init__(self, folder, *options):
        self.folder = pathlib.Path(folder)
        self.make(*options)

    def make(self, *options):
        result = run(SOURCE / "deploy" / "certificates", self.folder, *options)
        if result.returncode != 0:
            raise AssertionError(f"deploy/certificates ended with {result.returncode}:\n"
                                 f"{result.stderr}")

    def path(self, name):
        return self.folder / name

    def read(self, name):
        return self.path(name).read_bytes()

    def expired(self, name, like):
        """Makes a certificate that has the names of another one, and was valid until yesterday."""
        names = openssl("x509", "-in", self.path(f"{like}.pem"), "-noout", "-ext", "subjectAltName")
        request, extensions = self.path(f"{name}.csr"), self.path(f"{name}.extensions")
        uris = names.splitlines()[1].replace("IP Address:", "IP:").replace(" ", "")
        extensions.write_text(f"subjectAltName = {uris}\n")
        shutil.copy(self.path(f"{like}.key"), self.path(f"{name}.key"))
        openssl("req", "-new", "-key", self.path(f"{name}.key"), "-subj", f"/CN={name}", "-out",
                request)
        openssl("x509", "-req", "-in", request, "-CA", self.path("ca.pem"), "-CAkey",
                self.path("ca.key"), "-set_serial", "77", "-days", "-1", "-extfile", extensions,
                "-out", self.path(f"{name}.pem"))

    def options(self, name, ca="ca"):
        """The command line of a program that is `name`."""
        return ["--tls-cert", self.path(f"{name}.pem"), "--tls-key", self.path(f"{name}.key"),
                "--tls-ca", self.path(f"{ca}.pem")]


def replace(path, data):
    """Writes a file as a program that renews certificates does: whole, by renaming."""
    path = pathlib.Path(path)
    new = path.with_name(path.name + ".new")
    new.write_bytes(data)
    new.rename(path)


def handshake(port, *options):
    """What `openssl s_client` with these options says of a TLS handshake."""
    result = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-alpn", "h2", "-brief", *options],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60,
        check=False)
    return result.stderr.decode(errors="replace")
