//! What the launch path copies and clears by calls of its own: from any thread, and nothing before it has been read.

use crate::emulated::Emulated;
use ggro::cuda::{Buffer, Packets};
use ggro_emulator::{Config, Streams};

/// A thread that has made no call before has no context, and the driver's calls take that of the thread.
#[test]
fn a_new_thread_may_copy_and_clear() {
    let emulated = Emulated::new(Config::default());
    let device = &emulated.device;
    let from = Buffer::from_slice(device, &[1u32, 2, 3, 4]).unwrap();
    let mut to = Buffer::<u32>::zeros(device, 4).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| to.view_mut().copy_from(device, from.view()).unwrap()).join().unwrap();
        scope.spawn(|| to.view_mut().slice(1..2).zero(device).unwrap()).join().unwrap();
        scope.spawn(|| assert_eq!(to.view().download(device).unwrap(), [1, 0, 3, 4])).join().unwrap();
        scope.spawn(|| assert!(device.memory().unwrap().0 > 0)).join().unwrap();
    });
    emulated.assert_clean();
}

/// The device reads pinned memory when it comes to it, here at the very end: more packets than there are in the ring, which
/// grow on the way, arrive as they were when they were sent.
#[test]
fn packets_are_read_before_they_are_written_again() {
    for streams in [Streams::Lazy, Streams::Eager] {
        let emulated = Emulated::new(Config { streams, ..Config::default() });
        let device = &emulated.device;
        let mut packets = Packets::new(device);
        let lengths: Vec<usize> = (0..11).map(|i| 100 + 40_000 * (i % 4) + i).collect();
        let mut all = Buffer::<u8>::zeros(device, lengths.iter().sum()).unwrap();
        let (mut at, mut expected, mut host) = (0, Vec::new(), Vec::new());
        for (number, &len) in lengths.iter().enumerate() {
            host.clear();
            host.resize(len, number as u8 + 1);
            packets.send(&host, all.view_mut().slice(at..at + len)).unwrap();
            at += len;
            expected.extend_from_slice(&host);
        }
        assert!(packets.send(&[1, 2], all.view_mut().slice(0..1)).is_err(), "another length");
        packets.send(&[], all.view_mut().slice(0..0)).unwrap();
        assert!(all.download(device).unwrap() == expected, "{streams:?}");
        emulated.assert_clean();
    }
}
