//! The contract of every part, kept by parts with feeds, by parts that can only list, and by parts that list out of order.

use crate::support::World;
use async_trait::async_trait;
use bytes::Bytes;
use rehome_objects::store::Store;
use rehome_objects::store::memory::MemoryStore;
use rehome_part::contract::{Options, Refused, Rig, check};
use rehome_part::{Part, Side};
use std::sync::Arc;

#[derive(Debug)]
struct Objects(World);

#[async_trait]
impl Rig for Objects {
    fn part(&self) -> Arc<dyn Part> {
        self.0.part()
    }

    async fn write(&self, side: Side, key: &str, content: &[u8]) -> Result<(), Refused> {
        self.0.place(side).write(key, content).await.map_err(|error| Refused(error.text))
    }

    async fn delete(&self, side: Side, key: &str) -> Result<(), Refused> {
        self.0.place(side).delete(key).await.map_err(|error| Refused(error.text))
    }

    async fn read(&self, side: Side, key: &str) -> Option<Vec<u8>> {
        self.0.place(side).bucket.content(key).map(|content| content.to_vec())
    }

    async fn plant(&self, side: Side, key: &str, content: Option<&[u8]>) {
        let bucket = &self.0.place(side).bucket;
        match content {
            Some(content) => bucket.seed(key, Bytes::copy_from_slice(content)),
            None => bucket.forget(key),
        }
    }

    async fn write_late(&self, side: Side, key: &str, content: &[u8]) {
        self.plant(side, key, Some(content)).await;
        self.0.place(side).feed.tell(key, false);
    }

    async fn guard(&self, side: Side) -> String {
        let bucket = &self.0.place(side).bucket;
        format!(
            "exists: {}, policy: {:?}",
            bucket.check().await.is_ok(),
            bucket.policy().await.unwrap_or(None)
        )
    }

    async fn make_target(&self) {
        self.0.target.bucket.create().await.unwrap();
    }

    async fn remains(&self) -> Vec<String> {
        let mut remains = Vec::new();
        for side in [Side::Source, Side::Target] {
            let bucket = &self.0.place(side).bucket;
            let keys = bucket.keys().into_iter().filter(|key| key.starts_with(".rehome/"));
            remains.extend(keys.map(|key| format!("{side}: {key}")));
            let uploads = bucket.open_uploads().await.unwrap_or_default();
            remains.extend(uploads.into_iter().map(|upload| format!("{side}: upload of {}", upload.key)));
        }
        remains
    }
}

async fn keeps_the_contract(world: impl Fn() -> World) {
    let rig = || async {
        let world = world();
        world.target.bucket.remove().await.unwrap();
        Objects(world)
    };
    check(rig, &Options::default()).await.unwrap_or_else(|why| panic!("{why}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_feeds() {
    keeps_the_contract(|| World::new(true)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_listing() {
    keeps_the_contract(|| World::new(false)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_listings_out_of_order_without_useful_tags() {
    keeps_the_contract(|| {
        let mut world = World::new(false);
        let bend = |bucket: &MemoryStore| {
            bucket.clone().with_capabilities(|c| {
                c.sorted_listing = false;
                c.etag_is_md5 = false;
            })
        };
        world.source.bucket = bend(&world.source.bucket);
        world.target.bucket = bend(&world.target.bucket);
        world
    })
    .await;
}
