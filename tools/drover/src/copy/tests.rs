use super::piece::Piece;
use super::*;
use drover_node::nbd::{BlockExport, MemoryExport, MemoryService, NbdAddress, NbdListener, ServerSettings};
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
        assert!(data_bytes < 6 << 20, "{data_bytes} bytes of data from a file that holds about 3 MiB");
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
        let listener = NbdListener::bind(&NbdAddress::Unix(socket.clone())).await.unwrap();
        let service = MemoryService::new([MemoryExport::new("disk", SIZE) as Rc<dyn BlockExport>]);
        let (_closing, closed) = tokio::sync::watch::channel(false);
        tokio::task::spawn_local(drover_node::nbd::run(listener, service, closed, ServerSettings::default()));
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
