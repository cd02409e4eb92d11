//! The S3 operations, translated between the protocol library and the store. No state of its own.

use super::Principal;
use super::answers::*;
use super::content::Reader;
use super::intake::{Announced, receive};
use super::listing::{self, MOST, encoded, page};
use super::multipart::assemble;
use super::record::{Attributes, Meta, Sums};
use super::store::{Claim, Conditions, Object, Store};
use crate::s3::REQUEST_HEADER;
use s3s::auth::Credentials;
use s3s::dto::*;
use s3s::{S3, S3Error, S3Request, S3Response, S3Result, s3_error};
use std::sync::Arc;

/// The request by which the writer says that it was asked to write.
fn cause(headers: &http::HeaderMap) -> Option<String> {
    headers.get(REQUEST_HEADER)?.to_str().ok().map(String::from)
}

/// Longer bodies are refused before they are read when the write would be denied anyway.
const LONG_BODY: i64 = 1 << 20;

#[derive(Debug, Clone)]
pub(super) struct Api {
    pub store: Arc<Store>,
    pub application: String,
}

impl Api {
    fn claim<'a>(
        &self,
        credentials: &Option<Credentials>,
        action: &'static str,
        bucket: &'a str,
        key: Option<&'a str>,
    ) -> S3Result<Claim<'a>> {
        let credentials = credentials.as_ref().ok_or_else(|| s3_error!(AccessDenied))?;
        let by = if credentials.access_key == self.application {
            Principal::Application
        } else {
            Principal::Migration
        };
        Ok(Claim { by, action, bucket, key, request: None })
    }

    /// Runs a change in the store; on a thread that may block when changes are synced to disk.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Store) -> S3Result<T> + Send + 'static,
    ) -> S3Result<T> {
        if !self.store.syncs() {
            return change(&self.store);
        }
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || change(&store)).await.map_err(S3Error::internal_error)?
    }

    async fn list(&self, claim: Claim<'_>, asked: Listing<'_>) -> S3Result<Listed> {
        let most = asked.max_keys.map_or(MOST, |most| usize::try_from(most).unwrap_or(0).min(MOST));
        let url = match asked.encoding.as_ref().map(EncodingType::as_str) {
            None => false,
            Some(EncodingType::URL) => true,
            Some(_) => return Err(s3_error!(InvalidArgument, "the only encoding type is url")),
        };
        let page = self.store.look(claim, |bucket| {
            Ok(page(&bucket.objects, asked.prefix.unwrap_or(""), asked.delimiter, asked.after, most))
        })?;
        let spell = |text: &str| if url { encoded(text) } else { text.to_string() };
        Ok(Listed {
            contents: page.objects.iter().map(|(key, object)| line(spell(key), &object.meta)).collect(),
            prefixes: page
                .prefixes
                .iter()
                .map(|prefix| CommonPrefix { prefix: Some(spell(prefix)) })
                .collect(),
            next: page.next,
            most,
            url,
        })
    }
}

struct Listing<'a> {
    prefix: Option<&'a str>,
    delimiter: Option<&'a str>,
    after: Option<&'a str>,
    max_keys: Option<i32>,
    encoding: &'a Option<EncodingType>,
}

struct Listed {
    contents: Vec<s3s::dto::Object>,
    prefixes: Vec<CommonPrefix>,
    next: Option<String>,
    most: usize,
    url: bool,
}

impl Listed {
    fn spell(&self, text: Option<String>) -> Option<String> {
        text.map(|text| if self.url { encoded(&text) } else { text })
    }

    fn count(&self) -> i32 {
        i32::try_from(self.contents.len() + self.prefixes.len()).unwrap_or(i32::MAX)
    }
}

#[async_trait::async_trait]
impl S3 for Api {
    async fn list_buckets(
        &self,
        req: S3Request<ListBucketsInput>,
    ) -> S3Result<S3Response<ListBucketsOutput>> {
        self.claim(&req.credentials, "s3:ListAllMyBuckets", "", None)?;
        let buckets = self.store.survey(|index| {
            let one = |(name, bucket): (&String, &super::store::Bucket)| Bucket {
                name: Some(name.clone()),
                creation_date: Some(time(bucket.created_ms)),
                ..Default::default()
            };
            index.buckets.iter().map(one).collect()
        });
        Ok(S3Response::new(ListBucketsOutput { buckets: Some(buckets), ..Default::default() }))
    }

    async fn create_bucket(
        &self,
        req: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        let claim = self.claim(&req.credentials, "s3:CreateBucket", &req.input.bucket, None)?;
        self.store.make_bucket(claim)?;
        Ok(S3Response::new(CreateBucketOutput { location: Some(format!("/{}", req.input.bucket)) }))
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        let claim = self.claim(&req.credentials, "s3:ListBucket", &req.input.bucket, None)?;
        self.store.look(claim, |_| Ok(()))?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        let claim = self.claim(&req.credentials, "s3:GetBucketLocation", &req.input.bucket, None)?;
        self.store.look(claim, |_| Ok(()))?;
        Ok(S3Response::new(GetBucketLocationOutput::default()))
    }

    async fn delete_bucket(
        &self,
        req: S3Request<DeleteBucketInput>,
    ) -> S3Result<S3Response<DeleteBucketOutput>> {
        let claim = self.claim(&req.credentials, "s3:DeleteBucket", &req.input.bucket, None)?;
        self.store.drop_bucket(claim)?;
        Ok(S3Response::new(DeleteBucketOutput::default()))
    }

    async fn get_bucket_policy(
        &self,
        req: S3Request<GetBucketPolicyInput>,
    ) -> S3Result<S3Response<GetBucketPolicyOutput>> {
        let claim = self.claim(&req.credentials, "s3:GetBucketPolicy", &req.input.bucket, None)?;
        let policy = self.store.look(claim, |bucket| {
            bucket.policy.as_ref().map(|(text, _)| text.clone()).ok_or_else(|| s3_error!(NoSuchBucketPolicy))
        })?;
        Ok(S3Response::new(GetBucketPolicyOutput { policy: Some(policy) }))
    }

    async fn put_bucket_policy(
        &self,
        req: S3Request<PutBucketPolicyInput>,
    ) -> S3Result<S3Response<PutBucketPolicyOutput>> {
        let claim = self.claim(&req.credentials, "s3:PutBucketPolicy", &req.input.bucket, None)?;
        self.store.set_policy(claim, Some(req.input.policy.clone()))?;
        Ok(S3Response::new(PutBucketPolicyOutput::default()))
    }

    async fn delete_bucket_policy(
        &self,
        req: S3Request<DeleteBucketPolicyInput>,
    ) -> S3Result<S3Response<DeleteBucketPolicyOutput>> {
        let claim = self.claim(&req.credentials, "s3:DeleteBucketPolicy", &req.input.bucket, None)?;
        self.store.set_policy(claim, None)?;
        Ok(S3Response::new(DeleteBucketPolicyOutput::default()))
    }

    async fn list_objects(
        &self,
        req: S3Request<ListObjectsInput>,
    ) -> S3Result<S3Response<ListObjectsOutput>> {
        let input = req.input;
        let claim = self.claim(&req.credentials, "s3:ListBucket", &input.bucket, None)?;
        let asked = Listing {
            prefix: input.prefix.as_deref(),
            delimiter: input.delimiter.as_deref(),
            after: input.marker.as_deref(),
            max_keys: input.max_keys,
            encoding: &input.encoding_type,
        };
        let mut listed = self.list(claim, asked).await?;
        let contents = std::mem::take(&mut listed.contents);
        let output = ListObjectsOutput {
            is_truncated: Some(listed.next.is_some()),
            next_marker: listed.spell(listed.next.clone()).filter(|_| input.delimiter.is_some()),
            max_keys: i32::try_from(listed.most).ok(),
            prefix: listed.spell(input.prefix),
            marker: listed.spell(input.marker),
            delimiter: listed.spell(input.delimiter),
            encoding_type: input.encoding_type,
            name: Some(input.bucket),
            common_prefixes: Some(listed.prefixes),
            contents: Some(contents),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let claim = self.claim(&req.credentials, "s3:ListBucket", &input.bucket, None)?;
        let token = match &input.continuation_token {
            None => None,
            Some(token) => Some(
                listing::from_token(token)
                    .ok_or_else(|| s3_error!(InvalidArgument, "not a token of ours"))?,
            ),
        };
        let asked = Listing {
            prefix: input.prefix.as_deref(),
            delimiter: input.delimiter.as_deref(),
            after: token.as_deref().or(input.start_after.as_deref()),
            max_keys: input.max_keys,
            encoding: &input.encoding_type,
        };
        let mut listed = self.list(claim, asked).await?;
        let key_count = listed.count();
        let contents = std::mem::take(&mut listed.contents);
        let output = ListObjectsV2Output {
            is_truncated: Some(listed.next.is_some()),
            next_continuation_token: listed.next.as_deref().map(listing::token),
            key_count: Some(key_count),
            max_keys: i32::try_from(listed.most).ok(),
            prefix: listed.spell(input.prefix),
            start_after: listed.spell(input.start_after),
            delimiter: listed.spell(input.delimiter),
            continuation_token: input.continuation_token,
            encoding_type: input.encoding_type,
            name: Some(input.bucket),
            common_prefixes: Some(listed.prefixes),
            contents: Some(contents),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = req.input;
        let object = self.store.object(self.claim(
            &req.credentials,
            "s3:GetObject",
            &input.bucket,
            Some(&input.key),
        )?)?;
        let conditions = ReadConditions {
            if_match: &input.if_match,
            if_none_match: &input.if_none_match,
            if_modified_since: &input.if_modified_since,
            if_unmodified_since: &input.if_unmodified_since,
        };
        conditions.check(&object.meta)?;
        let with_sums = input.checksum_mode.is_some();
        let mut output =
            HeadObjectOutput { content_length: Some(signed(object.meta.size)), ..Default::default() };
        describe!(output, &object.meta, with_sums);
        Ok(S3Response::new(output))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        let object = self.store.object(self.claim(
            &req.credentials,
            "s3:GetObject",
            &input.bucket,
            Some(&input.key),
        )?)?;
        let conditions = ReadConditions {
            if_match: &input.if_match,
            if_none_match: &input.if_none_match,
            if_modified_since: &input.if_modified_since,
            if_unmodified_since: &input.if_unmodified_since,
        };
        conditions.check(&object.meta)?;
        let (range, content_range) = resolve(input.range, object.meta.size)?;
        // A checksum of the whole content beside a part of it would only mislead.
        let with_sums = input.checksum_mode.is_some() && content_range.is_none();
        let status = content_range.is_some().then_some(http::StatusCode::PARTIAL_CONTENT);
        let mut output = GetObjectOutput {
            content_length: Some(signed(range.end - range.start)),
            content_range,
            body: Some(StreamingBlob::new(Reader::new(&object.pieces, range))),
            ..Default::default()
        };
        describe!(output, &object.meta, with_sums);
        let mut response = S3Response::new(output);
        response.status = status;
        Ok(response)
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let mut input = req.input;
        let attributes = attributes!(input);
        check_attributes(&attributes)?;
        let conditions =
            Conditions { if_match: input.if_match.take(), if_none_match: input.if_none_match.take() };
        let claim = self.claim(&req.credentials, "s3:PutObject", &input.bucket, Some(&input.key))?;
        if input.content_length.is_some_and(|length| length > LONG_BODY) {
            self.store.foresee(claim, &conditions)?;
        }
        let announced = Announced {
            content_md5: input.content_md5.take(),
            sums: sums!(input),
            trailers: req.trailing_headers,
            trailer_names: trailer_names(&req.headers),
            algorithm: input.checksum_algorithm.take().map(|algorithm| algorithm.as_str().to_string()),
        };
        let object = Arc::new(receive(&self.store, input.body.take(), announced, attributes, false).await?);
        let mut output =
            PutObjectOutput { e_tag: Some(ETag::Strong(object.meta.etag.clone())), ..Default::default() };
        tell_sums!(output, object.meta.sums);
        output.checksum_type = Some(ChecksumType::from_static(ChecksumType::FULL_OBJECT));
        let (by, bucket, key) = (claim.by, input.bucket.clone(), input.key.clone());
        let request = cause(&req.headers);
        self.change(move |store| {
            let (action, request) = ("s3:PutObject", request.as_deref());
            let claim = Claim { by, action, bucket: &bucket, key: Some(&key), request };
            store.put(claim, object, &conditions)
        })
        .await?;
        Ok(S3Response::new(output))
    }

    async fn copy_object(&self, req: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        let mut input = req.input;
        let CopySource::Bucket { bucket: from, key: from_key, .. } = &input.copy_source else {
            return Err(s3_error!(NotImplemented));
        };
        let source =
            self.store.object(self.claim(&req.credentials, "s3:GetObject", from, Some(from_key))?)?;
        if input
            .copy_source_if_match
            .as_ref()
            .and_then(ETagCondition::as_etag)
            .is_some_and(|tag| tag.value() != source.meta.etag)
        {
            return Err(s3_error!(PreconditionFailed));
        }
        let replace = input
            .metadata_directive
            .as_ref()
            .is_some_and(|directive| directive.as_str() == MetadataDirective::REPLACE);
        let mut meta = Meta { modified_ms: crate::moment::wall_millis(), ..source.meta.clone() };
        if replace {
            meta.attributes = attributes!(input);
            check_attributes(&meta.attributes)?;
        }
        let result = CopyObjectResult {
            e_tag: Some(ETag::Strong(meta.etag.clone())),
            last_modified: Some(time(meta.modified_ms)),
            ..Default::default()
        };
        let object = Arc::new(Object { meta, pieces: source.pieces.clone() });
        let by = self.claim(&req.credentials, "s3:PutObject", &input.bucket, Some(&input.key))?.by;
        let (bucket, key) = (input.bucket.clone(), input.key.clone());
        self.change(move |store| {
            let claim = Claim { by, action: "s3:PutObject", bucket: &bucket, key: Some(&key), request: None };
            store.put(claim, object, &Conditions::default())
        })
        .await?;
        Ok(S3Response::new(CopyObjectOutput { copy_object_result: Some(result), ..Default::default() }))
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let (bucket, key) = (req.input.bucket, req.input.key);
        let by = self.claim(&req.credentials, "s3:DeleteObject", &bucket, Some(&key))?.by;
        let request = cause(&req.headers);
        self.change(move |store| {
            let (action, request) = ("s3:DeleteObject", request.as_deref());
            store.delete(Claim { by, action, bucket: &bucket, key: Some(&key), request })
        })
        .await?;
        let mut response = S3Response::new(DeleteObjectOutput::default());
        response.status = Some(http::StatusCode::NO_CONTENT);
        Ok(response)
    }

    async fn delete_objects(
        &self,
        req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let input = req.input;
        let by = self.claim(&req.credentials, "s3:DeleteObject", &input.bucket, None)?.by;
        let list =
            Claim { by, action: "s3:DeleteObject", bucket: &input.bucket, key: Some(""), request: None };
        self.store.survey(|index| index.bucket(list.bucket).map(|_| ()))?;
        let (mut deleted, mut errors) = (Vec::new(), Vec::new());
        for object in input.delete.objects {
            let (bucket, key) = (input.bucket.clone(), object.key.clone());
            let outcome = self
                .change(move |store| {
                    store.delete(Claim {
                        by,
                        action: "s3:DeleteObject",
                        bucket: &bucket,
                        key: Some(&key),
                        request: None,
                    })
                })
                .await;
            match outcome {
                Ok(()) => deleted.push(DeletedObject { key: Some(object.key), ..Default::default() }),
                Err(error) => errors.push(s3s::dto::Error {
                    key: Some(object.key),
                    code: Some(error.code().as_str().to_string()),
                    message: error.message().map(String::from),
                    ..Default::default()
                }),
            }
        }
        if input.delete.quiet.unwrap_or(false) {
            deleted.clear();
        }
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: Some(deleted),
            errors: Some(errors),
            ..Default::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let mut input = req.input;
        let attributes = attributes!(input);
        check_attributes(&attributes)?;
        let claim = self.claim(&req.credentials, "s3:PutObject", &input.bucket, Some(&input.key))?;
        let algorithm = input.checksum_algorithm.take().map(|algorithm| algorithm.as_str().to_string());
        let id = self.store.begin_upload(claim, attributes, algorithm)?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            ..Default::default()
        }))
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let mut input = req.input;
        let number = u32::try_from(input.part_number).ok().filter(|number| (1..=10_000).contains(number));
        let number = number.ok_or_else(|| s3_error!(InvalidArgument, "part numbers go from 1 to 10000"))?;
        let claim = self.claim(&req.credentials, "s3:PutObject", &input.bucket, Some(&input.key))?;
        let upload = self.store.upload(claim, &input.upload_id)?;
        let announced = Announced {
            content_md5: input.content_md5.take(),
            sums: sums!(input),
            trailers: req.trailing_headers,
            trailer_names: trailer_names(&req.headers),
            algorithm: input
                .checksum_algorithm
                .take()
                .map(|algorithm| algorithm.as_str().to_string())
                .or(upload.algorithm),
        };
        let part =
            Arc::new(receive(&self.store, input.body.take(), announced, Attributes::default(), true).await?);
        let mut output =
            UploadPartOutput { e_tag: Some(ETag::Strong(part.meta.etag.clone())), ..Default::default() };
        tell_sums!(output, part.meta.sums);
        let by = claim.by;
        let (bucket, key, id) = (input.bucket.clone(), input.key.clone(), input.upload_id.clone());
        self.change(move |store| {
            let claim = Claim { by, action: "s3:PutObject", bucket: &bucket, key: Some(&key), request: None };
            store.add_part(claim, &id, number, part)
        })
        .await?;
        Ok(S3Response::new(output))
    }

    async fn list_parts(&self, req: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        let input = req.input;
        let claim =
            self.claim(&req.credentials, "s3:ListMultipartUploadParts", &input.bucket, Some(&input.key))?;
        let upload = self.store.upload(claim, &input.upload_id)?;
        let most = input.max_parts.map_or(MOST, |most| usize::try_from(most).unwrap_or(0).min(MOST));
        let after = input.part_number_marker.and_then(|marker| u32::try_from(marker).ok()).unwrap_or(0);
        let mut newer = upload.parts.range(after + 1..);
        let parts: Vec<Part> =
            newer.by_ref().take(most).map(|(number, part)| tell_part(*number, &part.meta)).collect();
        let more = newer.next().is_some();
        let output = ListPartsOutput {
            next_part_number_marker: parts.last().and_then(|part| part.part_number),
            part_number_marker: input.part_number_marker,
            max_parts: i32::try_from(most).ok(),
            is_truncated: Some(more),
            parts: Some(parts),
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let mut input = req.input;
        let by = self.claim(&req.credentials, "s3:PutObject", &input.bucket, Some(&input.key))?.by;
        let conditions =
            Conditions { if_match: input.if_match.take(), if_none_match: input.if_none_match.take() };
        let expected = sums!(input);
        let listed = input.multipart_upload.take().and_then(|list| list.parts).unwrap_or_default();
        let (bucket, key, id, size) =
            (input.bucket.clone(), input.key.clone(), input.upload_id.clone(), input.mpu_object_size);
        let meta = self
            .change(move |store| {
                let claim =
                    Claim { by, action: "s3:PutObject", bucket: &bucket, key: Some(&key), request: None };
                store.complete_upload(claim, &id, &conditions, |upload| {
                    for wanted in &listed {
                        check_listed_part(upload, wanted)?;
                    }
                    assemble(upload, &listed, &expected, size)
                })
            })
            .await?;
        let mut output = CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", input.bucket, encoded(&input.key))),
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(ETag::Strong(meta.etag.clone())),
            checksum_type: Some(ChecksumType::from_static(ChecksumType::FULL_OBJECT)),
            ..Default::default()
        };
        tell_sums!(output, meta.sums);
        Ok(S3Response::new(output))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let claim =
            self.claim(&req.credentials, "s3:AbortMultipartUpload", &req.input.bucket, Some(&req.input.key))?;
        self.store.abort_upload(claim, &req.input.upload_id)?;
        let mut response = S3Response::new(AbortMultipartUploadOutput::default());
        response.status = Some(http::StatusCode::NO_CONTENT);
        Ok(response)
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = req.input;
        let claim = self.claim(&req.credentials, "s3:ListBucketMultipartUploads", &input.bucket, None)?;
        self.store.look(claim, |_| Ok(()))?;
        let most = input.max_uploads.map_or(MOST, |most| usize::try_from(most).unwrap_or(0).min(MOST));
        let prefix = input.prefix.as_deref().unwrap_or("");
        let key_marker = input.key_marker.as_deref().unwrap_or("");
        let id_marker =
            input.upload_id_marker.as_deref().unwrap_or(if key_marker.is_empty() { "" } else { "~" });
        let mut uploads = self.store.survey(|index| {
            let mine = index.uploads.iter().filter(|(id, upload)| {
                upload.bucket == input.bucket
                    && upload.key.starts_with(prefix)
                    && (upload.key.as_str(), id.as_str()) > (key_marker, id_marker)
            });
            mine.map(|(id, upload)| (upload.key.clone(), id.clone(), upload.begun_ms, upload.by))
                .collect::<Vec<_>>()
        });
        uploads.sort();
        let more = uploads.len() > most;
        uploads.truncate(most);
        let url = input.encoding_type.is_some();
        let spell = |text: &str| if url { encoded(text) } else { text.to_string() };
        let last = uploads.last().filter(|_| more);
        let output = ListMultipartUploadsOutput {
            next_key_marker: last.map(|(key, ..)| spell(key)),
            next_upload_id_marker: last.map(|(_, id, ..)| id.clone()),
            is_truncated: Some(more),
            max_uploads: i32::try_from(most).ok(),
            uploads: Some(
                uploads
                    .iter()
                    .map(|(key, id, begun_ms, by)| tell_upload(spell(key), id, *begun_ms, *by))
                    .collect(),
            ),
            prefix: input.prefix.as_deref().map(spell),
            key_marker: input.key_marker.as_deref().map(spell),
            upload_id_marker: input.upload_id_marker,
            encoding_type: input.encoding_type,
            bucket: Some(input.bucket),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }
}
