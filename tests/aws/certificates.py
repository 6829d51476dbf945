"""Creates a certificate authority and a server certificate for a host name: certificates.py DIRECTORY NAME

Writes ca.pem, server.pem and server.key into the directory.
"""

import datetime
import os
import sys

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

directory, name = sys.argv[1:]
now = datetime.datetime.now(datetime.timezone.utc)


def common_name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def certificate(subject, key, issuer, issuer_key, extensions):
    builder = x509.CertificateBuilder().subject_name(common_name(subject)).issuer_name(common_name(issuer))
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())


def write(file, content, mode):
    path = os.path.join(directory, file)
    with open(path, "wb") as opened:
        opened.write(content)
    os.chmod(path, mode)


ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
ca = certificate("authority", ca_key, "authority", ca_key, [(x509.BasicConstraints(True, 0), True)])
server = certificate(name, key, "authority", ca_key, [(x509.SubjectAlternativeName([x509.DNSName(name)]), False)])
pem = serialization.Encoding.PEM
private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
write("ca.pem", ca.public_bytes(pem), 0o644)
write("server.pem", server.public_bytes(pem), 0o644)
write("server.key", private, 0o600)
