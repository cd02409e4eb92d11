//! A gateway in the foreground: `serve LISTEN SOURCE TARGET FOLDER`, for measuring it without anything around.

use rehome_gateway::{Config, start};

#[tokio::main]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [listen, source, target, folder] = &words[..] else { return };
    let service = serde_json::json!({ "name": "api", "listen": listen, "source": source, "target": target });
    let service = serde_json::from_value(service).expect("the shape of a service");
    let folder = std::path::Path::new(folder);
    let config =
        Config::new("serve", folder.join("state"), folder.join("control.sock"), "measure", vec![service]);
    let running = start(config).await.expect("the gateway starts");
    running.wait().await;
}
