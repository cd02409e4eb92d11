//! Clients that no one here wrote: rclone and boto3, when `scripts/tools.sh` has brought them. Missing tools are named on
//! standard error and skipped; with `REHOME_REQUIRE_TOOLS=1` they fail the test.

use crate::common::{Cloud, config, keys};
use std::path::{Path, PathBuf};
use std::process::Output;
use tokio::process::Command;

/// A program below `.tools` or on the path.
fn find(name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let own = [".tools/bin", ".tools/venv/bin"].map(|folder| root.join(folder));
    let path = std::env::var_os("PATH").unwrap_or_default();
    own.into_iter()
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

fn missing(what: &str) {
    assert!(
        std::env::var("REHOME_REQUIRE_TOOLS").as_deref() != Ok("1"),
        "{what} is missing: run scripts/tools.sh"
    );
    eprintln!("SKIPPED: {what} is missing; scripts/tools.sh installs it");
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rclone_up_check_and_down() {
    let Some(rclone) = find("rclone") else { return missing("rclone") };
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(config(&folder.path().join("cloud"))).await;
    let tree = folder.path().join("tree");
    std::fs::create_dir_all(tree.join("deep er/ü")).unwrap();
    for (name, content) in [("plus+and%25", "1"), ("deep er/ü/file", "22"), ("empty", ""), ("quote'&x", "4")]
    {
        std::fs::write(tree.join(name), content).unwrap();
    }
    let large: Vec<u8> = (0..12u32 << 20).map(|index| (index % 253) as u8).collect();
    std::fs::write(tree.join("large"), large).unwrap();
    let back = folder.path().join("back");
    let run = async |arguments: &[&str]| {
        let app = keys("app");
        let mut command = Command::new(&rclone);
        command
            .args(["--config", "/dev/null", "--retries", "1", "--low-level-retries", "1"])
            .args(arguments)
            .env("RCLONE_CONFIG_C_TYPE", "s3")
            .env("RCLONE_CONFIG_C_PROVIDER", "Other")
            .env("RCLONE_CONFIG_C_ENDPOINT", format!("http://{}", cloud.running.address))
            .env("RCLONE_CONFIG_C_ACCESS_KEY_ID", &app.access_key)
            .env("RCLONE_CONFIG_C_SECRET_ACCESS_KEY", &app.secret_key)
            .env("RCLONE_CONFIG_C_REGION", "us-east-1");
        succeeded(&command.output().await.unwrap())
    };
    let (from, to) = (tree.to_str().unwrap(), back.to_str().unwrap());
    run(&["copy", from, "c:shop/p", "--s3-upload-cutoff", "5M", "--s3-chunk-size", "5M"]).await;
    run(&["check", from, "c:shop/p", "--download"]).await;
    run(&["copy", "c:shop/p", to]).await;
    run(&["check", from, to]).await;
    assert_eq!(run(&["lsf", "-R", "--files-only", "c:shop/p"]).await.lines().count(), 5);
    run(&["copyto", "c:shop/p/empty", "c:shop/p/copied"]).await;
    run(&["delete", "c:shop/p"]).await;
    assert!(cloud.app.list("").await.unwrap().is_empty());
    cloud.stop().await;
}

const BOTO: &str = r#"
import boto3, os, sys, io
from botocore.config import Config
from botocore.exceptions import ClientError
s3 = boto3.client("s3", endpoint_url=os.environ["ENDPOINT"], region_name="us-east-1",
                  config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}))
keys = ["a", "a/", "a/b", "plus+", "plus ", "per%25", "%2B", "ü/中", "x//y", "q?#&"]
for key in keys:
    s3.put_object(Bucket="shop", Key=key, Body=key.encode(), Metadata={"k": "v"}, ContentType="text/x")
page = s3.get_paginator("list_objects_v2").paginate(Bucket="shop", PaginationConfig={"PageSize": 3})
assert [o["Key"] for p in page for o in p["Contents"]] == sorted(keys, key=lambda k: k.encode())
v1 = s3.get_paginator("list_objects").paginate(Bucket="shop", Delimiter="/", PaginationConfig={"PageSize": 2})
found = [(o["Key"] if "Key" in o else o["Prefix"]) for p in v1 for o in p.get("Contents", []) + p.get("CommonPrefixes", [])]
assert sorted(found) == sorted(["a", "a/", "plus+", "plus ", "per%25", "%2B", "ü/", "x/", "q?#&"]), found
for key in keys:
    got = s3.get_object(Bucket="shop", Key=key)
    assert got["Body"].read() == key.encode() and got["Metadata"] == {"k": "v"} and got["ContentType"] == "text/x"
for algorithm in ["CRC32", "SHA1", "SHA256"]:
    put = s3.put_object(Bucket="shop", Key="sum", Body=b"content", ChecksumAlgorithm=algorithm)
    head = s3.head_object(Bucket="shop", Key="sum", ChecksumMode="ENABLED")
    assert put["Checksum" + algorithm] == head["Checksum" + algorithm]
big = bytes(range(256)) * 4096 * 12
s3.upload_fileobj(io.BytesIO(big), "shop", "big", Config=boto3.s3.transfer.TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20))
assert s3.get_object(Bucket="shop", Key="big", Range="bytes=5242870-5242889")["Body"].read() == big[5242870:5242890]
assert s3.head_object(Bucket="shop", Key="big")["ETag"].endswith('-3"')
def code(call, **arguments):
    try:
        call(Bucket="shop", **arguments)
        return None
    except ClientError as error:
        return error.response["Error"]["Code"]
assert code(s3.put_object, Key="a", Body=b"", IfNoneMatch="*") == "PreconditionFailed"
assert code(s3.get_object, Key="absent") == "NoSuchKey"
assert code(s3.head_object, Key="x") == "404"
assert code(s3.get_bucket_policy) == "NoSuchBucketPolicy"
done = s3.delete_objects(Bucket="shop", Delete={"Objects": [{"Key": k} for k in keys + ["sum", "big"]]})
assert len(done["Deleted"]) == 12 and "Errors" not in done
assert s3.list_objects_v2(Bucket="shop")["KeyCount"] == 0
print("ok")
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boto3_with_its_own_defaults() {
    let Some(python) = find("python3") else { return missing("python3") };
    let has_boto =
        Command::new(&python).args(["-c", "import boto3"]).output().await.unwrap().status.success();
    if !has_boto {
        return missing("boto3");
    }
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(config(folder.path())).await;
    let app = keys("app");
    let output = Command::new(&python)
        .args(["-c", BOTO])
        .env("ENDPOINT", format!("http://{}", cloud.running.address))
        .env("AWS_ACCESS_KEY_ID", &app.access_key)
        .env("AWS_SECRET_ACCESS_KEY", &app.secret_key)
        .env_remove("AWS_PROFILE")
        .output()
        .await
        .unwrap();
    assert_eq!(succeeded(&output).trim(), "ok");
    cloud.stop().await;
}
