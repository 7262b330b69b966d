//! SPEC chapter 4: the first flight.

use bytes::{Bytes, BytesMut};
use longwire_protocol::{
    BrokerEvent, BrokerLimits, BrokerSession, ClientEvent, ClientSession, FrameCodec, Lane, Millis, packet,
};
use prost::Message as _;
use tokio_util::codec::Decoder as _;

#[test]
fn a_client_is_let_in_publishes_and_is_sent_items() {
    let now = Millis(0);
    let connect = packet::Connect { version: 1, device: "phone".into(), ..Default::default() };
    let mut client = ClientSession::new(now, connect);
    let mut broker = BrokerSession::<u64>::new(now, BrokerLimits::default());
    let mut to_broker = FrameCodec::default();
    let mut to_client = FrameCodec::default();
    let mut wire = BytesMut::new();
    assert!(client.poll_transmit(now, &mut wire, 64 * 1024));
    let (frame, bytes) = to_broker.decode(&mut wire).expect("good bytes").expect("a frame");
    let event = broker.handle_frame(now, frame, bytes).expect("no refusal");
    assert!(matches!(event, Some(BrokerEvent::Connect(_))));
    broker.accept(now, packet::Connected { user: 1, ..Default::default() });
    let item = packet::Item {
        kind: Some(packet::item::Kind::Entry(packet::Entry {
            content: Bytes::from_static(b"hello"),
            ..Default::default()
        })),
    };
    broker.deliver(now, Lane::Bulk, 7, &Bytes::from(item.encode_to_vec()));
    assert!(broker.poll_transmit(now, &mut wire, 64 * 1024));
    let (frame, bytes) = to_client.decode(&mut wire).expect("good bytes").expect("a frame");
    assert!(matches!(client.handle_frame(now, frame, bytes), Ok(Some(ClientEvent::Connected(_)))));
    let (frame, bytes) = to_client.decode(&mut wire).expect("good bytes").expect("a frame");
    let event = client.handle_frame(now, frame, bytes).expect("no refusal");
    assert_eq!(event, Some(ClientEvent::Items { lane: Lane::Bulk, first_n: 1, items: vec![item] }));
    client.stored(now, Lane::Bulk, 1);
    client.flush_acks();
    assert!(client.poll_transmit(now, &mut wire, 64 * 1024));
    let (frame, bytes) = to_broker.decode(&mut wire).expect("good bytes").expect("a frame");
    let event = broker.handle_frame(now, frame, bytes).expect("no refusal");
    assert_eq!(event, Some(BrokerEvent::Acked { express: None, bulk: Some(7) }));
    assert!(broker.is_idle());
    println!("size of BrokerSession: {}", size_of::<BrokerSession<[u64; 3]>>());
    println!("size of FrameCodec: {}", size_of::<FrameCodec>());
}
