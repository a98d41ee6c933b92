use super::*;
use crate::{
    Buffer, Device, DeviceError, contract,
    sim::{SimDevice, SoloWorld},
};
use std::{cell::RefCell, future::Future, rc::Rc};

fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce(Rc<dyn Device>) -> F) {
    let mut solo = SoloWorld::new(3);
    let device = Rc::new(SimDevice::new(solo.world(), contract::SIZE_BYTES));
    solo.run(test(device));
}

#[test]
fn layers_are_devices() {
    run(|device| contract::check(Rc::new(FailNth::new(device))));
    run(|device| contract::check(Rc::new(CorruptRead::new(device))));
    run(|device| contract::check(Rc::new(Observe::new(device, |_| {}))));
}

#[test]
fn one_request_fails() {
    run(|device| async move {
        let layer = FailNth::new(device);
        let eio = Err(DeviceError::Io { errno: libc::EIO, offset: 8192, len: 16_384 });
        layer.arm(Operation::Write, 1);
        layer.write(0, Buffer::zeroed(32_768)).await.0.unwrap();
        let mut ones = Buffer::zeroed(16_384);
        ones.fill(1);
        let (result, ones) = layer.write(8192, ones).await;
        assert_eq!((result, ones.len()), (eio.clone(), 16_384));
        assert!(ones.iter().all(|&byte| byte == 1));
        let (_, stored) = layer.read(8192, Buffer::zeroed(16_384)).await;
        assert_eq!((stored[0], stored[8191], stored[8192]), (1, 1, 0), "half of it is stored");
        layer.arm(Operation::Read, 0);
        layer.sync().await.unwrap();
        assert_eq!(layer.read(8192, Buffer::zeroed(16_384)).await.0, eio);
        layer.arm(Operation::Sync, 0);
        layer.read(8192, Buffer::zeroed(16_384)).await.0.unwrap();
        assert_eq!(layer.sync().await, Err(DeviceError::Sync { errno: libc::EIO }));
        layer.sync().await.unwrap();
        layer.arm_with(Operation::Discard, 0, libc::EOPNOTSUPP);
        let refused = DeviceError::Io { errno: libc::EOPNOTSUPP, offset: 4096, len: 8192 };
        assert_eq!(layer.discard(4096, 8192).await, Err(refused));
        layer.discard(4096, 8192).await.unwrap();
    });
}

#[test]
fn one_read_is_corrupt() {
    run(|device| async move {
        let layer = CorruptRead::new(device);
        layer.write(0, Buffer::zeroed(4096)).await.0.unwrap();
        layer.arm(1, 9);
        let reads = [layer.read(0, Buffer::zeroed(4096)).await, layer.read(0, Buffer::zeroed(4096)).await];
        assert_eq!(reads[0].1, Buffer::zeroed(4096));
        assert_eq!((reads[1].1[0], reads[1].1[1]), (0, 2));
        assert_eq!(layer.read(0, Buffer::zeroed(4096)).await.1, Buffer::zeroed(4096));
    });
}

#[test]
fn the_observer_is_told_in_order() {
    run(|device| async move {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let log = seen.clone();
        let failing = Rc::new(FailNth::new(device));
        let layer = Observe::new(failing.clone(), move |event| log.borrow_mut().push(event));
        layer.write(4096, Buffer::zeroed(8192)).await.0.unwrap();
        layer.sync().await.unwrap();
        failing.arm(Operation::Sync, 0);
        layer.sync().await.unwrap_err();
        layer.discard(4096, 8192).await.unwrap();
        let expected = [
            Event::WriteEnds { offset: 4096, len: 8192, is_ok: true },
            Event::SyncBegins,
            Event::SyncEnds { is_ok: true },
            Event::SyncBegins,
            Event::SyncEnds { is_ok: false },
            Event::DiscardBegins { offset: 4096, len: 8192 },
            Event::DiscardEnds { offset: 4096, len: 8192, is_ok: true },
        ];
        assert_eq!(*seen.borrow(), expected);
    });
}
