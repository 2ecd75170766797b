//! Pictures of uploaded files: which are there, and by what they are known.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reground_learner::bpo::data::blobs::Blobs;

use super::*;

/// A picture with a remark in it, and without: two files, one photograph.
fn remarked() -> [Vec<u8>; 2] {
    let mut plain = std::io::Cursor::new(Vec::new());
    image::DynamicImage::new_rgb8(3, 2).write_to(&mut plain, image::ImageFormat::Jpeg).unwrap();
    let plain = plain.into_inner();
    let mut remarked = plain[..2].to_vec();
    remarked.extend_from_slice(b"\xff\xfe\x00\x0bsomebody!");
    remarked.extend_from_slice(&plain[2..]);
    [remarked, plain]
}

/// An annotation of a picture.
fn about(url: &str, number: usize) -> String {
    let user = json!([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": format!("Is {number} even?")}]);
    let says = |text: &str| json!([{"role": "assistant", "content": text}]);
    let entry = json!({"input": {"messages": [{"role": "user", "content": user}]},
        "preferred_output": says("It depends."), "non_preferred_output": says("It does not.")});
    format!("{entry}\n")
}

#[tokio::test]
async fn annotations_lose_the_lines_whose_picture_was_deleted_and_no_others() {
    let place = Place::with(|config| config.train.anchor_share = 0.5).await;
    let runs = place.runs(&format!("cp dataset.jsonl kept.jsonl\n{}", finish(true)));
    let [remarked, plain] = remarked();
    let digest = Blobs::put(&*place.store, &plain).unwrap();
    let url = format!("data:image/jpeg;base64,{}", STANDARD.encode(&remarked));
    let lines = [about(&format!("blob:{digest}"), 0), about(&url, 1), about(&format!("blob:{digest}"), 2)].concat();
    let path = place.dir.path().join("annotated.jsonl");
    fs_err::write(&path, lines).unwrap();
    let upload = files::Upload { filename: "annotated.jsonl".into(), key: "test".into() };
    let file = files::add(&place.store, &path, upload).unwrap().id;
    // As when the record goes that brought it.
    fs_err::remove_file(place.store.blob_path(&digest).unwrap()).unwrap();
    let request = RunRequest { anchors: Some(vec![file]), ..RunRequest::default() };
    let id = runs.create(request, "test").await.unwrap().id;
    let run = until(&runs, &id, RunState::Succeeded).await;
    assert_eq!(run.pairs, 5, "four collected pairs and the one annotation whose picture is there");
    let dataset = fs_err::read_to_string(place.store.run_directory(&id).join("kept.jsonl")).unwrap();
    let kept: Vec<_> = dataset.lines().filter(|line| line.contains("It depends.")).collect();
    assert_eq!(kept.len(), 1);
    // Known by what the recorder knows the same photograph by, so that it cannot be held out here and trained on there.
    assert!(kept[0].contains(&digest), "{}", kept[0]);
    assert!(told(&runs, &id).await.iter().any(|told| told.contains("2 pairs are left out")), "nobody was told");
}
