import socket

from finetune.distribution.peer import Peer, first_line, send


def test_messages_arrive_whole_and_in_order_until_the_connection_ends():
    here, there = socket.socketpair()
    with here, there:
        for number in range(3):
            send(here, {"number": number, "text": "a\nb" * 1000})
        Peer(1, here).close()
        assert [message["number"] for message in Peer(0, there).messages()] == [0, 1, 2]


def test_an_empty_message_is_a_sign_of_life():
    here, there = socket.socketpair()
    with here, there:
        peer = Peer(0, there)
        before = peer.heard
        send(here, {})
        assert next(peer.messages()) == {}
        assert peer.heard > before


def test_what_is_no_message_ends_the_reading():
    here, there = socket.socketpair()
    with here, there:
        here.sendall(b"[]\n")
        assert list(Peer(0, there).messages()) == []


def test_the_first_message_is_read_alone():
    here, there = socket.socketpair()
    with here, there:
        send(here, {"a": 1})
        send(here, {"b": 2})
        assert first_line(there) == {"a": 1}
        assert next(Peer(0, there).messages()) == {"b": 2}
        here.close()
        assert first_line(there) is None


def test_a_message_to_somebody_who_is_gone_is_lost_without_an_error():
    here, there = socket.socketpair()
    there.close()
    with here:
        peer = Peer(0, here)
        for _ in range(3):
            peer.send({"a": 1})
