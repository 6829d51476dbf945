"""Writes vectors.json: what awscli and botocore create at fixed times with fixed keys. scripts/aws-vectors runs it.

As `vectors.py live CLOCK ARGUMENT...` it runs awscli at the given time instead.
"""

import contextlib
import datetime
import io
import json
import os
import sys
from unittest import mock

import awscli
import awscli.clidriver
import botocore
import botocore.config
import botocore.session

ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
SESSION_TOKEN = "IQoJb3JpZ2luX2VjEXAMPLE//////////wEaCXVzLWVhc3QtMSJHMEUCIQ+a/b==&x=y z~"


@contextlib.contextmanager
def clock(text):
    now = datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ")

    def fixed(remove_tzinfo=True):
        return now if remove_tzinfo else now.replace(tzinfo=datetime.timezone.utc)

    import awscli.customizations.eks.get_token as get_token
    import botocore.auth
    import botocore.signers

    with contextlib.ExitStack() as stack:
        for module in (get_token, botocore.auth, botocore.signers):
            if hasattr(module, "get_current_datetime"):
                stack.enter_context(mock.patch.object(module, "get_current_datetime", fixed))
        yield


@contextlib.contextmanager
def credentials(token):
    variables = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    variables |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull}
    if token:
        variables["AWS_SESSION_TOKEN"] = token
    kept = {name: value for name, value in os.environ.items() if name == "AWS_DATA_PATH" or not name.startswith("AWS_")}
    with mock.patch.dict(os.environ, kept | variables, clear=True):
        yield


def aws(*arguments):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = awscli.clidriver.create_clidriver().main(list(arguments))
    if code:
        raise SystemExit(f"aws {' '.join(arguments)} ended with {code}: {output.getvalue()}")
    return output.getvalue()


def vector(now, session_token, **parameters):
    keys = {"access_key": ACCESS_KEY, "secret_key": SECRET_KEY, "session_token": session_token}
    return {"clock": now, **keys, **parameters}


def eks_tokens():
    regions = ["us-east-1", "eu-west-1", "ap-southeast-4", "cn-north-1", "cn-northwest-1", "us-gov-west-1", "us-gov-east-1"]
    for now in ["2026-11-22T00:44:14Z", "2024-02-29T23:59:59Z"]:
        for region in regions:
            for token in [None, SESSION_TOKEN]:
                for cluster in ["compute", "Team_1-cluster"]:
                    with clock(now), credentials(token):
                        text = aws("eks", "get-token", "--cluster-name", cluster, "--region", region)
                    yield vector(now, token, region=region, cluster=cluster, exec_credential=json.loads(text))


def rds_tokens():
    for region, host in [
        ("eu-west-1", "database.abcdefghijkl.eu-west-1.rds.amazonaws.com"),
        ("cn-north-1", "database.abcdefghijkl.rds.cn-north-1.amazonaws.com.cn"),
    ]:
        for token in [None, SESSION_TOKEN]:
            for user in ["operator", "operator service+1"]:
                now = "2026-11-22T00:44:14Z"
                with clock(now), credentials(token):
                    session = botocore.session.get_session()
                    client = session.create_client("rds", region_name=region)
                    text = client.generate_db_auth_token(DBHostname=host, Port=5432, DBUsername=user)
                yield vector(now, token, region=region, host=host, port=5432, user=user, token=text)


def s3_urls():
    for region in ["us-east-1", "eu-west-1", "cn-north-1", "us-gov-west-1"]:
        for token in [None, SESSION_TOKEN]:
            for key in ["a.txt", "jobs/9f/out put+ä(1)'s~*.txt", "a//b/../c%20d"]:
                for bucket in ["outputs", "outputs.example.org"]:
                    now = "2026-11-22T00:44:14Z"
                    with clock(now), credentials(token):
                        config = botocore.config.Config(signature_version="s3v4", s3={"addressing_style": "virtual"})
                        client = botocore.session.get_session().create_client("s3", region_name=region, config=config)
                        parameters = {
                            "Bucket": bucket,
                            "Key": key,
                            "ResponseContentDisposition": 'attachment;filename="a b.txt"',
                        }
                        text = client.generate_presigned_url("get_object", Params=parameters, ExpiresIn=300)
                    yield vector(now, token, region=region, bucket=bucket, key=key, url=text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["live"]:
        with clock(sys.argv[2]):
            print(aws(*sys.argv[3:]))
    else:
        vectors = {
            "made_by": f"awscli {awscli.__version__}, botocore {botocore.__version__}",
            "eks_tokens": list(eks_tokens()),
            "rds_tokens": list(rds_tokens()),
            "s3_urls": list(s3_urls()),
        }
        path = os.path.join(os.path.dirname(__file__), "vectors.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(vectors, file, indent=1, ensure_ascii=False)
            file.write("\n")
