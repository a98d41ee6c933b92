use super::piece::Piece;
use super::*;
use drover_node::nbd::{self, BlockExport, MemoryExport, MemoryService, NbdAddress, NbdListener, ServerSettings};
use futures::TryStreamExt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

const SIZE: u64 = 24 << 20;

/// A file with data, holes and written zeros.
fn sparse(path: &Path) -> Vec<u8> {
    let file = File::create(path).unwrap();
    file.set_len(SIZE).unwrap();
    for (at, len, value) in [(0, 5000, 1u8), (3 << 20, 2 << 20, 2), (9 << 20, 1 << 20, 0), (SIZE - 100, 100, 3)] {
        file.write_all_at(&vec![value; len], at).unwrap();
    }
    std::fs::read(path).unwrap()
}

#[test]
fn a_file_becomes_pieces_that_cover_it_and_leave_out_its_holes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let content = sparse(&path);
    crate::commands::block_on(async {
        let (size, pieces) = file::read(&path)?;
        assert_eq!(size, SIZE);
        let pieces: Vec<Piece> = pieces.try_collect().await?;
        let mut at = 0;
        let mut data_bytes = 0;
        for piece in &pieces {
            match piece {
                Piece::Data { offset, data } => {
                    assert_eq!(*offset, at);
                    assert_eq!(data[..], content[at as usize..][..data.len()]);
                    data_bytes += data.len();
                }
                Piece::Zero { offset, len } => {
                    assert_eq!(*offset, at);
                    assert!(is_zero(&content[at as usize..][..*len as usize]));
                }
            }
            at += piece.len();
        }
        assert_eq!(at, SIZE);
        // 5,000 and 100 bytes in blocks of the file system, and 2 MiB; what is written as zeros is none.
        assert!(data_bytes <= (2 << 20) + (16 << 10), "{data_bytes} bytes of data");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_file_through_an_export_and_back_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (image, back) = (folder.path().join("image"), folder.path().join("back"));
    let content = sparse(&image);
    let socket = folder.path().join("nbd.sock");
    crate::commands::block_on(async {
        let listener = NbdListener::bind(&NbdAddress::Unix(socket.clone()), None).await.unwrap();
        let service = MemoryService::new([MemoryExport::new("disk", SIZE) as Rc<dyn BlockExport>]);
        let (_closing, closed) = tokio::sync::watch::channel(false);
        let (settings, serve) = (ServerSettings::default(), nbd::serve_here(service.clone()));
        tokio::task::spawn_local(nbd::run(listener, service, closed, settings, serve));
        let uri: NbdUri = format!("nbd+unix:///disk?socket={}", socket.display()).parse().unwrap();
        let copied = file_into_nbd(&image, &uri, &mut Progress::Silent).await?;
        assert_eq!(copied.size_bytes, SIZE);
        from_nbd(&uri, &Place::File(back.clone()), &mut Progress::Silent).await?;
        assert!(std::fs::read(&back).unwrap() == content);
        // Over what is there: holes of the source must become zeros.
        std::fs::write(&image, vec![0; SIZE as usize]).unwrap();
        let (size, pieces) = file::read(&image)?;
        into_nbd(&uri, size, pieces, false, &mut Progress::Silent).await?;
        from_nbd(&uri, &Place::File(back.clone()), &mut Progress::Silent).await?;
        assert!(is_zero(&std::fs::read(&back).unwrap()));
        Ok(())
    })
    .unwrap();
}

#[test]
fn extents_of_zeros_in_what_was_read_are_holes() {
    let mut bytes = vec![0; 300 << 10];
    bytes[100 << 10] = 1;
    bytes[(300 << 10) - 1] = 1;
    // Begins 60 KiB into an extent: pieces are cut where extents begin.
    let pieces = super::piece::split(60 << 10, bytes.into());
    let shape: Vec<(u64, bool)> =
        pieces.iter().map(|piece| (piece.len(), matches!(piece, Piece::Zero { .. }))).collect();
    assert_eq!(shape, [(68 << 10, true), (64 << 10, false), (128 << 10, true), (40 << 10, false)]);
}

#[test]
fn what_cannot_be_copied_is_told_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    File::create(&empty).unwrap();
    for path in [empty.as_path(), folder.path(), Path::new("/dev/zero"), Path::new("/nonexistent")] {
        let failure = file::read(path).map(|_| ()).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage, "{failure}");
    }
}

/// Ctrl-C drops the copy where it stands.
#[test]
fn a_copy_that_is_broken_off_leaves_no_file_behind() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("target");
    crate::commands::block_on(async {
        let begun = futures::stream::iter([Ok(Piece::Zero { offset: 0, len: 10 })]).chain(futures::stream::pending());
        let mut progress = Progress::Silent;
        let copy = file::write(&target, 100, Box::pin(begun), &mut progress);
        assert!(futures::FutureExt::now_or_never(copy).is_none());
        Ok(())
    })
    .unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_copy_that_fails_leaves_no_file_behind() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("target");
    let result = crate::commands::block_on(async {
        let failing = futures::stream::iter([
            Ok(Piece::Zero { offset: 0, len: 10 }),
            Err(Failure::failed("the source cannot be read")),
        ]);
        file::write(&target, 100, Box::pin(failing), &mut Progress::Silent).await
    });
    assert!(result.is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
