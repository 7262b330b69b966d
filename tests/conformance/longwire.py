#!/usr/bin/env python3
"""A small Longwire client in plain Python, written from SPEC.md and longwire.proto alone. It keeps them honest.

Without arguments it checks the vectors of protocol/vectors. With a running broker it also checks what SPEC.md says of
one:

    longwire.py
    longwire.py --url longwires://127.0.0.1:14000 --ca ca.pem --token TOKEN
    longwire.py --url longwire://127.0.0.1:14001 --token TOKEN        (plain TCP)

It needs Python 3.9 and nothing else, prints one line for each thing that it checked, and exits with 1 at the first
deviation, with 2 if it could not start.
"""

import argparse
import base64
import json
import os
import pathlib
import re
import socket
import ssl
import sys
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT_BEFORE_CONNECTED = 4096  # SPEC R3-4


class Deviation(Exception):
    """Something is not as SPEC.md says."""


class Refused(Exception):
    """Bytes that must be refused, with the name of the reason."""


# ---------------------------------------------------------------------------------------------- the .proto


class Field:
    def __init__(self, name, number, kind, repeated, choice):
        self.name, self.number, self.kind, self.repeated, self.choice = name, number, kind, repeated, choice


class Proto:
    """The messages and enumerations of a .proto file: as much of the language as longwire.proto uses."""

    def __init__(self, text):
        self.messages, self.enums = {}, {}
        text = re.sub(r"//[^\n]*", "", text)
        tokens = re.findall(r'"[^"]*"|[A-Za-z_][\w.]*|\d+|[{}=;]', text)
        at = 0
        while at < len(tokens):
            if tokens[at] in ("message", "enum"):
                at = self.block(tokens, at)
            else:
                at = tokens.index(";", at) + 1

    def block(self, tokens, at):
        is_message, name, at = tokens[at] == "message", tokens[at + 1], at + 3
        fields, choice = {}, None
        while True:
            if tokens[at] == "}" and choice is None:
                break
            if tokens[at] == "}":
                choice, at = None, at + 1
            elif tokens[at] == "oneof":
                choice, at = tokens[at + 1], at + 3
            elif not is_message:
                fields[int(tokens[at + 2])] = tokens[at]
                at += 4
            else:
                repeated = tokens[at] == "repeated"
                at += repeated
                kind, field, number = tokens[at], tokens[at + 1], int(tokens[at + 3])
                fields[number] = Field(field, number, kind, repeated, choice)
                at += 5
        (self.messages if is_message else self.enums)[name] = fields
        return at + 1


PROTO = Proto((ROOT / "protocol/proto/longwire.proto").read_text(encoding="utf-8"))

# SPEC R3-7, by message and field.
LISTS = {
    ("Connect", "features"): 32,
    ("Connected", "features"): 32,
    ("CreateGroup", "users"): 1000,
    ("UsersRequest", "users"): 200,
    ("Deliver", "items"): 4096,
    ("HistoryPage", "items"): 200,
    ("ConversationsPage", "conversations"): 200,
    ("MembersPage", "members"): 200,
    ("UsersPage", "users"): 200,
    ("Beside", "mentions"): 50,
    ("Beside", "attachments"): 16,
    ("ReceiptsPage", "marks"): 200,
    ("PresenceRequest", "users"): 200,
    ("PresenceAnswer", "users"): 200,
}
NUMBERS = {"uint32": 32, "uint64": 64}


# ---------------------------------------------------------------------------------------------- bytes


def varint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data, at, end):
    """The number at `at` and where it ends; None where more bytes are needed."""
    value = 0
    for index in range(10):
        if at + index >= end:
            return None
        byte = data[at + index]
        if index == 9 and byte > 1:
            break
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise Refused("malformed")


def decode(name, data, at=0, end=None):
    """A message as the value of its vector: SPEC R3-5 to R3-8, R10-1."""
    end = len(data) if end is None else end
    fields, value, chosen = PROTO.messages[name], {}, set()
    while at < end:
        tag, at = need(read_varint(data, at, end))
        number, wire = tag >> 3, tag & 7
        if number == 0 or number >= 1 << 29 or wire not in (0, 1, 2, 5):
            raise Refused("malformed")
        if wire == 2:
            length, at = need(read_varint(data, at, end))
            body, at = (at, at + length), at + length
        elif wire == 0:
            body, at = need(read_varint(data, at, end))
        else:
            body, at = None, at + (8 if wire == 1 else 4)
        if at > end:
            raise Refused("malformed")
        field = fields.get(number)
        if field is None:
            continue
        if field.choice is not None:
            if field.choice in chosen:
                raise Refused("malformed")
            chosen.add(field.choice)
        for item in read_field(field, wire, body, data):
            if field.repeated:
                value.setdefault(field.name, []).append(item)
                # Lists that only a broker makes are as long as they are.
                if len(value[field.name]) > LISTS.get((name, field.name), 1 << 20):
                    raise Refused("malformed")
            elif item or field.kind in PROTO.messages:
                value[field.name] = item
            else:
                value.pop(field.name, None)
    return value


def need(read):
    if read is None:
        raise Refused("malformed")
    return read


def read_field(field, wire, body, data):
    kind = field.kind
    is_number = kind in NUMBERS or kind == "bool" or kind in PROTO.enums
    if is_number and wire == 2 and field.repeated:
        at, end = body
        while at < end:
            number, at = need(read_varint(data, at, end))
            yield number
        return
    if wire != (0 if is_number else 2):
        raise Refused("malformed")
    if kind in PROTO.messages:
        yield decode(kind, data, *body)
    elif kind == "string":
        try:
            yield data[body[0] : body[1]].decode("utf-8")
        except UnicodeDecodeError:
            raise Refused("malformed") from None
    elif kind == "bytes":
        yield data[body[0] : body[1]].hex()
    elif kind == "bool":
        yield body != 0
    elif kind in PROTO.enums:
        yield PROTO.enums[kind].get(body, body) if body else 0
    else:
        yield body % (1 << NUMBERS[kind])


def encode(name, value):
    """A message from the value of its vector: fields by number, defaults left out."""
    out = bytearray()
    for number, field in sorted(PROTO.messages[name].items()):
        if field.name not in value:
            continue
        items = value[field.name] if field.repeated else [value[field.name]]
        if field.repeated and field.kind in NUMBERS and items:
            packed = b"".join(varint(item) for item in items)
            out += varint(number << 3 | 2) + varint(len(packed)) + packed
            continue
        for item in items:
            if field.kind in PROTO.messages:
                item = encode(field.kind, item)
            elif field.kind == "string":
                item = item.encode("utf-8")
            elif field.kind == "bytes":
                item = bytes.fromhex(item)
            elif field.kind in PROTO.enums:
                item = {name: number for number, name in PROTO.enums[field.kind].items()}[item]
            if not item and not field.repeated and field.kind not in PROTO.messages:
                continue
            if isinstance(item, bytes):
                out += varint(number << 3 | 2) + varint(len(item)) + item
            else:
                out += varint(number << 3) + varint(int(item))
    return bytes(out)


def frame(packet):
    """The bytes of a packet on the wire; None is a heartbeat."""
    body = b"" if packet is None else encode("Packet", packet)
    return varint(len(body)) + body


def read_frame(data, limit):
    """The packet at the start of `data` and how many bytes it took; None where more are needed (SPEC R3-1 to R3-4)."""
    read = read_varint(data, 0, len(data))
    if read is None:
        if len(data) >= 5:
            raise Refused("frame_too_large")
        return None
    length, at = read
    if at != len(varint(length)):
        raise Refused("malformed")
    if length > limit:
        raise Refused("frame_too_large")
    if len(data) < at + length:
        return None
    if length == 0:
        return None, 1
    return decode("Packet", data, at, at + length), at + length


# ---------------------------------------------------------------------------------------------- vectors


def check_vectors():
    good = lines("good.jsonl")
    for line in good:
        data = bytes.fromhex(line["frame"])
        packet, length = read_frame(data, 1 << 20)
        expect(packet == line["value"], f"vector {line['name']}: decoded {packet}, expected {line['value']}")
        expect(length == len(data), f"vector {line['name']}: {length} of {len(data)} bytes taken")
        expect(frame(line["value"]) == data, f"vector {line['name']}: encoded {frame(line['value']).hex()}")
        for cut in range(len(data)):
            expect(read_frame(data[:cut], 1 << 20) is None, f"vector {line['name']}: cut at {cut} and not partial")
    bad = lines("bad.jsonl")
    for line in bad:
        verdict = judge(bytes.fromhex(line["bytes"]), line["limit"])
        expect(verdict == line["verdict"], f"vector {line['name']}: {verdict}, expected {line['verdict']}")
    passed(f"{len(good)} good and {len(bad)} bad vectors")


def judge(data, limit):
    try:
        read = read_frame(data, limit)
    except Refused as refused:
        return str(refused)
    if read is None:
        return "partial"
    return "accepted" if read[0] else "ignored"


def lines(name):
    text = (ROOT / "protocol/vectors" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


# ---------------------------------------------------------------------------------------------- a client


REASONS = {
    int(code): name
    for code, name in re.findall(r"^\| (\d+) \| \*(\w+)\* \|", (ROOT / "SPEC.md").read_text(encoding="utf-8"), re.M)
}


class Session:
    """One connection: what came is sorted into items, cursors and answers; items are acked as they are stored."""

    def __init__(self, options, device, connect=None, token=None):
        self.socket = open_socket(options)
        self.buffer, self.limit, self.ended = b"", LIMIT_BEFORE_CONNECTED, None
        self.items, self.cursors, self.answers, self.heartbeats = {0: [], 1: []}, [], [], 0
        self.signals, self.stores = [], True
        self.connected, self.left = None, None
        self.send({"connect": {"version": 1, "token": token or options.token, "device": device, **(connect or {})}})

    def send(self, packet):
        if self.left:
            return
        try:
            self.socket.sendall(frame(packet))
        except (ConnectionError, ssl.SSLError) as error:
            # Why it ended may still be there to be read.
            self.left = f"closed: {error}"

    def open(self):
        """Waits for `Connected`."""
        self.wait(lambda: self.connected, "Connected")
        return self

    def wait(self, until, what, seconds=15):
        """Reads until something is there, and gives it."""
        deadline = time.monotonic() + seconds
        while not until():
            if self.ended is not None:
                raise Deviation(f"the connection ended ({self.ended}) while waiting for {what}")
            left = deadline - time.monotonic()
            if left <= 0:
                raise Deviation(f"no {what} within {seconds} s")
            self.read(left)
        return until()

    def read(self, seconds):
        self.socket.settimeout(seconds)
        try:
            data = self.socket.recv(65536)
        except socket.timeout:
            return
        except (ConnectionError, ssl.SSLError) as error:
            self.ended = self.ended or f"closed: {error}"
            return
        if not data:
            self.ended = self.ended or "closed"
        self.buffer += data
        while (read := read_frame(self.buffer, self.limit)) is not None:
            self.buffer = self.buffer[read[1] :]
            self.handle(read[0])

    def handle(self, packet):
        if packet is None:
            self.heartbeats += 1
            return
        for kind, value in packet.items():
            getattr(self, "on_" + kind)(value)

    def on_connected(self, value):
        expect(self.connected is None, "Connected came twice")
        self.connected, self.limit = value, value["frame_bytes_max"]

    def on_publish_ack(self, value):
        self.answers.append(("publish", value.get("message_id", 0), value))

    def on_response(self, value):
        self.answers.append(("request", value.get("id", 0), value))

    def on_refused(self, value):
        reason = REASONS.get(value.get("code", 0))
        expect(reason, f"a refusal with an unknown code: {value}")
        if value.get("message_id"):
            self.answers.append(("publish", value["message_id"], {"reason": reason}))
        elif value.get("request"):
            self.answers.append(("request", value["request"], {"reason": reason}))
        else:
            self.ended = reason

    def on_deliver(self, value):
        lane = {"BULK": 1}.get(value.get("lane"), 0)
        items, n = self.items[lane], value.get("n", 0)
        expect(n == len(items) + 1, f"Deliver begins with {n} after {len(items)} (R6.1-1)")
        expect(value.get("items"), "a Deliver without items")
        items.extend(value["items"])
        if self.stores:
            self.ack()

    def ack(self):
        """Says that all that came is stored (R6.3-1)."""
        self.send({"ack": {"express": len(self.items[0]), "bulk": len(self.items[1])}})

    def on_cursor(self, value):
        self.cursors.append((value.get("cursor", ""), len(self.items[0]), len(self.items[1])))

    def on_ack_request(self, value):
        self.send({"ack": {"express": len(self.items[0]), "bulk": len(self.items[1]), "answer": value["k"]}})

    def on_signal(self, value):
        self.signals.append(value)

    def on_goaway(self, _):
        pass

    def answer(self, kind, number):
        """The answer to a publish or request, taken out."""
        found = lambda: next((a for a in self.answers if a[:2] == (kind, number)), None)
        answer = self.wait(found, f"answer to {kind} {number}")
        self.answers.remove(answer)
        return answer[2]

    def publish(self, number, **fields):
        self.send({"publish": {"message_id": number, **fields}})
        return self.answer("publish", number)

    def request(self, number, **operation):
        self.send({"request": {"id": number, **operation}})
        answer = self.answer("request", number)
        if "reason" in answer:
            return answer
        return answer.get(next(iter(operation)), {})

    def end(self):
        """Waits for the end and gives its reason."""
        deadline = time.monotonic() + 15
        while self.ended is None and time.monotonic() < deadline:
            self.read(1)
        return self.ended

    def caught_up(self, lane):
        return any("caught_up" in item for item in self.items[lane])

    def seqs(self, conversation):
        """The seqs of a conversation that came, in order, with ranges of Heads spelled out."""
        seqs = []
        for item in self.items[0] + self.items[1]:
            for kind in ("entry", "own"):
                if item.get(kind, {}).get("conversation") == conversation:
                    seqs.append(item[kind]["seq"])
            head = item.get("head", {})
            if head.get("conversation") == conversation:
                seqs.extend(range(head["from_seq"], head["to_seq"] + 1))
        return seqs

    def cut(self):
        """Closes without a word."""
        self.socket.close()

    def leave(self):
        """Says goodbye and waits until the broker closes (R10-7)."""
        self.send({"goodbye": {}})
        self.left = "said goodbye"
        reason = self.end()
        expect(str(reason).startswith("closed"), f"after a goodbye the broker closes: {reason} (R10-7)")
        self.socket.close()


def open_socket(options):
    url = urllib.parse.urlsplit(options.url)
    if url.scheme not in ("longwire", "longwires") or url.hostname is None:
        raise SystemExit("the URL is longwires://HOST:PORT, or longwire://HOST:PORT for plain TCP")
    plain = socket.create_connection((url.hostname, url.port or 14000), timeout=15)
    if url.scheme == "longwire":
        return plain
    context = ssl.create_default_context(cafile=options.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["longwire/1"])
    secure = context.wrap_socket(plain, server_hostname=url.hostname)
    expect(secure.selected_alpn_protocol() == "longwire/1", "the broker selects the ALPN name longwire/1 (R2-1)")
    return secure


# ---------------------------------------------------------------------------------------------- a broker


def check_broker(options):
    device = "conformance"
    session = check_first_flight(options, device)
    conversation, early, contents = check_publishing(session)
    late, caught = session.cursors[-1][0], session.connected
    session.cut()
    known = {"incarnation": caught["incarnation"], "first_unanswered": 8}
    check_resume(options, device, known, conversation, early, late, contents)
    check_history(options, device, known, conversation, contents)
    check_refusals(options, device, known, conversation)
    check_group(options)
    check_channel(options)
    check_requests(options)
    check_present(options)
    if options.peer_token:
        check_two_users(options)
        check_messages(options)
        check_delivered(options)
    check_strangers(options)


def check_first_flight(options, device):
    session = Session(options, device, {"start": "FRESH"}).open()
    told = session.connected
    for name in ("user", "device", "session", "inbox", "incarnation", "birth_unix_ms", "payload_bytes_max"):
        expect(told.get(name, 0) > 0, f"Connected.{name} is set (R4-4, R4-5, R4-6)")
    expect(told["heartbeat_ms_min"] <= told["heartbeat_ms_max"], "the range of heartbeats is one (R4-4)")
    expect(told["frame_bytes_max"] > told["payload_bytes_max"], "a frame is larger than its content (R4-4)")
    for window in ("publish", "express", "bulk"):
        expect(all(told.get(window, {}).get(n, 0) > 0 for n in ("items", "bytes")), f"a {window} window (R4-4)")
    expect(told.get("cursor") == "RESET" and told.get("reset_reason") == "ASKED", "a fresh start is a reset (R6.5-4)")
    before = session.heartbeats
    session.send(None)
    count = len(session.items[0]) + len(session.items[1])
    heard = lambda: session.heartbeats > before or len(session.items[0]) + len(session.items[1]) > count
    session.wait(heard, "answer to a heartbeat (R9-1)", 10)
    passed("connects, is told what holds, and has its heartbeat answered")
    return session


def check_publishing(session):
    opening = {"open_direct": {"user": "conformance-peer"}}
    opened = session.publish(1, **opening)
    conversation = opened.get("conversation", 0)
    expect(conversation > 0, f"OpenDirect names its conversation: {opened} (R5.1-2, R5.5-1)")
    expect(session.publish(1, **opening) == opened, "a repeated id has the same answer (R5.2-1)")
    other = session.publish(1, open_direct={"user": "another-peer"})
    expect(other == {"reason": "id_conflict"}, f"the id with other content is a conflict: {other} (R5.2-1)")
    passed("opens a direct conversation, once, whatever is repeated")

    contents, seqs, early = {}, [], None
    for number in range(2, 8):
        content = f"message {number} \u2600 ".encode() * number
        answer = session.publish(number, conversation=conversation, content=content.hex())
        expect("seq" in answer, f"message {number} is stored: {answer} (R5.1-2)")
        seqs.append(answer["seq"])
        contents[answer["seq"]] = content.hex()
        again = session.publish(number, conversation=conversation, content=content.hex())
        expect(again == answer, f"message {number} again has the same seq and time: {again}, {answer} (R5.2-1)")
        if number == 4:
            own = lambda: seqs[-1] in session.seqs(conversation)
            session.wait(own, "own entry")
            early = session.wait(lambda: covering(session), "cursor over what came so far (R6.3-4)")
    first = opened.get("seq", 0) + 1
    expect(seqs == list(range(first, first + 6)), f"seqs are gap-free: {seqs} after {opened} (R6.1-3)")
    session.wait(lambda: session.seqs(conversation)[-6:] == seqs, "own entries, in order (R6.1-3)")
    for item in session.items[0]:
        own = item.get("own", {})
        if own.get("conversation") == conversation and own.get("seq") in contents:
            expect(own.get("message_id", 0) == own["seq"] - first + 2, f"Own names the message id: {own}")
            expect("entry" not in own, "what this session published comes without content")
    session.wait(lambda: covering(session), "cursor over everything (R6.3-4)")
    passed("publishes six messages, gets a seq for each, once, and its own entries back in order")
    return conversation, early, contents


def covering(session):
    """The newest cursor, if it stands behind every item."""
    if not session.cursors or session.cursors[-1][1:] != (len(session.items[0]), len(session.items[1])):
        return None
    return session.cursors[-1][0]


def check_resume(options, device, known, conversation, early, late, contents):
    for cursor, missed in ((late, []), (early, sorted(contents)[3:])):
        session = Session(options, device, {**known, "start": "OWN_CURSOR", "cursor": cursor}).open()
        verdict = session.connected.get("cursor", "RESUMED")
        expect(verdict == "RESUMED", f"the broker resumes from its own cursor: {session.connected} (R6.5-1)")
        expect(session.connected.get("first_unanswered", 0) <= known["first_unanswered"], "the floor (R4-7)")
        session.wait(lambda: session.caught_up(0) and session.caught_up(1), "CaughtUp in both lanes (R6.5-1)")
        came = session.seqs(conversation)
        expect(came == missed, f"what came after the cursor is {came}, and not {missed} (R6.1-2)")
        session.leave()
    stored = Session(options, device, {**known, "start": "STORED_CURSOR"}).open()
    expect(stored.connected.get("cursor", "RESUMED") in ("RESUMED", "RESET"), "a verdict")
    stored.leave()
    passed("resumes from a cursor: nothing twice, nothing missing; from an older one, the rest again")


def check_history(options, device, known, conversation, contents):
    session = Session(options, device, {**known, "start": "FRESH"}).open()
    number = 0
    for backwards in (False, True):
        page, seqs = {"next_seq": 0}, []
        while True:
            number += 1
            ask = {"conversation": conversation, "from_seq": page.get("next_seq", 0), "limit": 4}
            page = session.request(number, history={**ask, "backwards": backwards})
            expect("reason" not in page, f"history is given: {page} (R8-3)")
            entries = sum("head" not in item for item in page.get("items", []))
            expect(1 <= entries <= 4, f"a page has 1 to 4 entries: {page} (R8-3)")
            for item in page["items"]:
                entry = item.get("entry") or item.get("own", {}).get("entry")
                if entry:
                    seqs.append(entry["seq"])
                    if entry["seq"] in contents:
                        expect(entry.get("content") == contents[entry["seq"]], f"content of {entry['seq']} (R5.1-3)")
                else:
                    part = list(range(item["head"]["from_seq"], item["head"]["to_seq"] + 1))
                    seqs.extend(reversed(part) if backwards else part)
            if not page.get("next_seq"):
                break
        whole = sorted(seqs)
        expect(whole == list(range(whole[0], whole[0] + len(whole))), f"history has no hole: {seqs} (R8-3)")
        expect(seqs == sorted(seqs, reverse=backwards), f"history is in the order asked for: {seqs} (R8-3)")
        expect(set(contents) <= set(seqs), f"history has what was published: {seqs} (R8-3)")
    listed = session.request(number + 1, conversations={"limit": 50}).get("conversations", [])
    expect(any(one["id"] == conversation for one in listed), f"the conversation is listed: {listed} (R8-4)")
    session.leave()
    passed("reads history forwards and backwards, in pages, without a hole, and finds the conversation listed")


def check_refusals(options, device, known, conversation):
    session = Session(options, device, {**known, "start": "FRESH"}).open()
    cases = [
        (3, {"conversation": conversation, "content": "00"}, "stale_id", "R5.2-2"),
        (known["first_unanswered"] + 256, {"conversation": conversation}, "id_span_exceeded", "R5.2-3"),
        (known["first_unanswered"], {"conversation": 4_000_000_000, "content": "00"}, "unknown_conversation", "R7-1"),
    ]
    for number, fields, reason, rule in cases:
        answer = session.publish(number, **fields)
        expect(answer == {"reason": reason}, f"{fields} with id {number}: {answer}, and not {reason} ({rule})")
    answer = session.request(1, history={"conversation": 4_000_000_000})
    expect(answer == {"reason": "unknown_conversation"}, f"history of nothing: {answer} (R7-1)")
    answer = session.request(2, watch={"conversation": 4_000_000_000})
    expect(answer == {"reason": "unknown_conversation"}, f"watching nothing: {answer} (R7-1)")
    session.send({"ack": {"express": 1 << 40}})
    reason = session.end()
    expect(reason == "ack_of_the_unsent", f"an ack of the unsent ends it: {reason} (R6.3-2)")
    passed("is refused what SPEC.md refuses, and the connection lives until a rule is broken that ends it")

    older = Session(options, device, {**known, "start": "FRESH"}).open()
    newer = Session(options, device, {**known, "start": "FRESH"}).open()
    expect(newer.connected["session"] > older.connected["session"], "sessions are numbered upwards")
    reason = older.end()
    expect(reason == "taken_over", f"a newer session takes over: {reason} (R4-10)")
    newer.leave()
    renewed = Session(options, device, {"start": "FRESH"}).open()
    expect(renewed.connected["incarnation"] > known["incarnation"], "incarnations rise (R4-6)")
    answer = renewed.publish(1, conversation=conversation, content="00")
    expect("seq" in answer, f"ids begin at 1 again in a new incarnation: {answer} (R4-6)")
    renewed.leave()
    reason = Session(options, device, {**known, "start": "FRESH"}).end()
    expect(reason == "incarnation_stale", f"an older incarnation: {reason} (R4-6)")
    passed("takes over an older session, and is refused an incarnation that was overtaken")


def name_of(token):
    """The user that a token names: the `sub` of the JWT's second part."""
    part = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))["sub"]


def fresh(options, what, connect=None):
    """A session of a device kept for this, in a new incarnation: a user has 20 devices, so their names are few."""
    return Session(options, "conformance-" + what, {"start": "FRESH", **(connect or {})}).open()


def check_group(options):
    session = fresh(options, "group")
    own, creation = session.connected["user"], {"label": "conformance", "users": ["conformance-peer"] * 2}
    made = session.publish(1, create_group=creation)
    group = made.get("conversation", 0)
    expect(group and made.get("seq") == 2, f"a group of two begins with two entries: {made} (5.5)")
    expect(session.publish(1, create_group=creation) == made, "creating it twice makes one group (R5.2-1)")
    session.wait(lambda: joined(session, group), "JOINED in the inbox (R7-5)")
    told = joined(session, group)
    expect(told.get("kind") == "GROUP" and told.get("role") == "OWNER", f"what JOINED says: {told} (R6.1-5)")
    expect(told.get("visible_from") == 1 and told.get("label") == "conformance", f"what JOINED says: {told} (R6.1-5)")

    steps = [
        (2, {"content": b"hello".hex()}, {"seq": 3}),
        (3, {"set_label": {"label": "renamed"}}, {"seq": 4}),
        (4, {"set_role": {"user": "conformance-peer", "role": "ADMIN"}}, {"seq": 5}),
        (5, {"set_role": {"user": "conformance-peer", "role": "ADMIN"}}, {"seq": 5}),
        (6, {"set_role": {"user": name_of(options.token), "role": "MEMBER"}}, {"reason": "invalid_argument"}),
        (7, {"leave": {}}, {"reason": "forbidden"}),
        (8, {"join": {}}, {"seq": 5}),
        (9, {"set_mark": {"seq": 3}}, {"seq": 5}),
    ]
    for number, fields, expected in steps:
        answer = session.publish(number, conversation=group, **fields)
        got = {name: value for name, value in answer.items() if name in ("seq", "reason")}
        expect(got == expected, f"{fields} in a group of one's own: {answer}, and not {expected} (5.5, 7)")
    session.wait(lambda: session.seqs(group)[-3:] == [3, 4, 5], "entries of the group, in order (R6.1-3)")
    expect(session.seqs(group) == [3, 4, 5], f"what JOINED covers is not delivered: {session.seqs(group)} (R6.1-5)")
    expect(not any(group_of(item) == group for item in session.items[0]), "a group is in the bulk lane (R7-6)")

    page = session.request(1, history={"conversation": group, "limit": 10})
    items = page.get("items", [])
    expect(["own" in item for item in items[2:]] == [True] * 3, f"own entries come as Own: {items} (R8-3)")
    entries = [item.get("entry") or item.get("own", {}).get("entry", {}) for item in items]
    kinds = [entry.get("kind", "MESSAGE") for entry in entries]
    expect(kinds == ["MEMBERSHIP", "MEMBERSHIP", "MESSAGE", "LABEL", "MEMBERSHIP"], f"the group's history: {entries}")
    first = entries[0]["membership"]
    expect(first.get("user") == own and first.get("role") == "OWNER", f"seq 1 is the owner's: {first} (5.5)")
    members = session.request(2, members={"conversation": group, "limit": 10}).get("members", [])
    roles = {member["name"]: member.get("role", "NONE") for member in members}
    expect(roles == {name_of(options.token): "OWNER", "conformance-peer": "ADMIN"}, f"its members: {roles} (R8-5)")
    users = [member["user"] for member in members]
    known = session.request(3, users={"users": [*users, 4_000_000_000]}).get("users", [])
    expect(sorted(user["user"] for user in known) == sorted(users), f"users who share it: {known} (R8-6)")
    expect(listed(session, 4, group).get("mark") == 3, f"the mark: {listed(session, 5, group)} (R5.5-5)")
    session.publish(10, conversation=group, set_mark={"seq": 1})
    expect(listed(session, 6, group).get("mark") == 3, "a mark does not fall (R5.5-5)")
    session.publish(11, conversation=group, set_mark={"seq": 1_000})
    expect(listed(session, 7, group).get("mark") == 5, "a mark is clamped to the head (R5.5-5)")

    answer = session.publish(12, conversation=group, set_role={"user": "conformance-peer", "role": "NONE"})
    expect(answer.get("seq") == 6, f"a member is removed: {answer}")
    answer = session.publish(13, conversation=group, leave={})
    expect(answer.get("seq") == 7, f"the last one leaves: {answer} (R7-3)")
    left = lambda: any(item.get("entry", {}).get("left", {}).get("conversation") == group for item in session.items[0])
    session.wait(left, "LEFT in the inbox (R7-5)")
    answer = session.publish(14, conversation=group, content="00")
    expect(answer == {"reason": "unknown_conversation"}, f"who has left does not write: {answer} (R7-1)")
    session.leave()
    passed("makes a group, names it, changes roles, marks, reads its history and members, and leaves it")


def group_of(item):
    """The conversation that an item is about, if it is an entry, an own entry or a Head."""
    return next((item[kind].get("conversation") for kind in ("entry", "own", "head") if kind in item), None)


def joined(session, conversation):
    """What the newest JOINED of a conversation says."""
    told = [item.get("entry", {}).get("joined", {}) for item in session.items[0]]
    return next((one for one in reversed(told) if one.get("conversation") == conversation), None)


def listed(session, number, conversation):
    """A conversation as the list of conversations has it."""
    page = session.request(number, conversations={"limit": 200}).get("conversations", [])
    return next((one for one in page if one["id"] == conversation), {})


def check_channel(options):
    name = "conformance/" + os.urandom(6).hex()
    session = fresh(options, "channel")
    opened = session.publish(1, open_channel={"name": name})
    if opened == {"reason": "unknown_conversation"}:
        session.leave()
        passed(f"is not let into {name}, which its token does not allow (R7-2); the rest of channels is not checked")
        return
    channel = opened.get("conversation", 0)
    expect(channel and not opened.get("seq"), f"a new channel is empty: {opened} (5.5)")
    again = session.publish(2, open_channel={"name": name})
    expect(again.get("conversation") == channel, f"there is one channel of a name: {again} (R5.5-3)")
    for wrong in ("", "a//b", "a/*", "/a"):
        answer = session.publish(3, open_channel={"name": wrong})
        expect(answer == {"reason": "invalid_argument"}, f"a channel named {wrong!r}: {answer} (R5.5-7)")
    reader = fresh(options, "reader")
    session.publish(4, conversation=channel, content=b"before".hex())
    watched = reader.request(1, watch={"conversation": channel})
    expect(watched.get("head_seq") == 1, f"watching begins at the head: {watched} (R8-7)")
    session.publish(5, conversation=channel, content=b"after".hex())
    reader.wait(lambda: reader.seqs(channel), "entry of a watched channel (R7-8)")
    expect(reader.seqs(channel) == [2], f"live only: {reader.seqs(channel)} (R7-8)")
    answer = session.publish(6, conversation=channel, join={})
    expect(answer.get("seq") == 2, f"joining writes no entry: {answer} (5.5)")
    session.wait(lambda: joined(session, channel), "JOINED in the inbox (R7-5)")
    expect(joined(session, channel).get("kind") == "CHANNEL", f"{joined(session, channel)}")
    session.publish(7, conversation=channel, content=b"joined".hex())
    session.wait(lambda: session.seqs(channel) == [3], "own entry of a joined channel, and none before (R6.1-5)")
    session.leave()
    reader.leave()
    passed("opens a channel, watches it live, and joins it")


def check_requests(options):
    session = fresh(options, "requests")
    answer = session.request(1, refresh={"token": options.token})
    expect(answer.get("expires_in_ms", 0) > 0, f"the same token again: {answer} (R8-8)")
    answer = session.request(2, refresh={"token": "not.a.token"})
    expect(answer == {"reason": "unauthenticated"}, f"a bad token does no harm: {answer} (R8-8)")
    answer = session.request(3, refresh={"token": "t" * 5000})
    expect(answer == {"reason": "invalid_argument"}, f"a long request: {answer} (R8-9)")
    session.send({"request": {"id": 4}})
    answer = session.answer("request", 4)
    expect(answer == {"reason": "unsupported"}, f"an operation to come: {answer} (R8-2)")
    session.leave()
    passed("refreshes its token, and is refused what is no request")


def check_present(options):
    hears = {"features": ["signals"]}
    phone, tablet = (fresh(options, what, hears) for what in ("phone", "tablet"))
    expect("signals" in phone.connected.get("features", []), "the broker has the feature (R16-4)")
    user = phone.connected["user"]
    direct = phone.publish(1, open_direct={"user": name_of(options.token)})["conversation"]
    tablet.send({"signal": {"conversation": direct, "kind": "APP", "content": "00" * 1025}})
    tablet.send({"signal": {"conversation": direct, "kind": "RECORDING"}})
    phone.wait(lambda: phone.signals, "signal of another device (R16-4)")
    heard = {"conversation": direct, "kind": "RECORDING", "user": user}
    expect(phone.signals == [heard], f"a signal, and nothing too long before it: {phone.signals} (R16-1)")
    answer = phone.request(1, presence={"users": [user, 1 << 40]})
    told = [{"user": user, "state": "ONLINE"}, {"user": 1 << 40}]
    expect(answer.get("users") == told, f"oneself is online, and nobody is hidden: {answer} (R16-11)")
    for session in (phone, tablet):
        expect(session.request(2, background={"background": True}) == {}, "it goes to the background (R16-9)")
    away = {"kind": "PRESENCE", "presence": {"user": user, "state": "AWAY"}}
    phone.wait(lambda: away in phone.signals, "change of presence (R16-10)")
    answer = phone.request(3, online={"conversation": direct})
    expect(answer == {"reason": "forbidden"}, f"small conversations are not counted: {answer} (R16-14)")

    answer = tablet.publish(1, conversation=1 << 40, content="00", set_will={})
    expect(answer == {"reason": "unknown_conversation"}, f"a will to nowhere: {answer} (R16-15)")
    expect("reason" not in tablet.publish(2, conversation=direct, content="aa", set_will={"after_ms": 1000}), "set")
    tablet.leave()
    watch = fresh(options, "watch")
    expect("reason" not in watch.publish(1, conversation=direct, content="bb", set_will={"after_ms": 1000}), "set")
    watch.cut()
    wills = lambda: [content for content in came(phone, direct).values() if content in ("aa", "bb")]
    phone.wait(wills, "will of a lost device (R16-16)")
    expect(wills() == ["bb"], f"and not of one that said goodbye: {wills()} (R16-17)")
    phone.leave()
    passed("signals, is told who is there, and leaves a will when it is lost")


def check_two_users(options):
    alice, device = fresh(options, "alice"), "conformance-bob"
    bob = Session(options, device, {"start": "FRESH"}, options.peer_token).open()
    opened = alice.publish(1, open_direct={"user": name_of(options.peer_token)})
    direct, head = opened["conversation"], opened.get("seq", 0)
    contents = {}
    for number in range(2, 6):
        content = os.urandom(20).hex()
        contents[alice.publish(number, conversation=direct, content=content)["seq"]] = content
    bob.wait(lambda: len(came(bob, direct)) >= 4, "messages of another user")
    expect(came(bob, direct) == contents, f"what bob got: {came(bob, direct)}, and not {contents} (R5.1-3)")
    bob.wait(lambda: covering(bob), "cursor over everything (R6.3-4)")
    cursor, incarnation = bob.cursors[-1][0], bob.connected["incarnation"]
    bob.leave()
    missed = {}
    for number in range(6, 20):
        content = os.urandom(number).hex()
        missed[alice.publish(number, conversation=direct, content=content)["seq"]] = content
    start = {"start": "OWN_CURSOR", "cursor": cursor, "incarnation": incarnation, "catch_up": "ALL"}
    bob = Session(options, device, start, options.peer_token).open()
    bob.wait(lambda: bob.caught_up(0) and bob.caught_up(1), "CaughtUp in both lanes (R6.5-1)")
    expect(came(bob, direct) == missed, f"what bob missed: {came(bob, direct)}, and not {missed} (R6.1-2)")
    answer = bob.publish(1, conversation=direct, content=b"back".hex())
    expect(answer.get("seq") == head + 19, f"bob answers: {answer}")
    alice.wait(lambda: came(alice, direct), "bob's answer")
    alice.leave()
    bob.leave()
    passed("talks to another user, who gets everything, live and after being away, in order and once")


def group_of_two(options, label):
    """A group that alice made with bob, and both in it."""
    alice = fresh(options, "alice")
    bob = Session(options, "conformance-bob", {"start": "FRESH"}, options.peer_token).open()
    group = alice.publish(1, create_group={"label": label, "users": [name_of(options.peer_token)]})["conversation"]
    bob.wait(lambda: joined(bob, group), "JOINED of the group")
    return alice, bob, group


def check_delivered(options):
    """What was delivered to whom, what a level withholds, and where a device is told (R8-13, R8-14, 6.6, R17-1)."""
    alice, bob, group = group_of_two(options, "delivered")
    a, b = alice.connected["user"], bob.connected["user"]
    bob.stores = False
    marks = alice.request(1, receipts={"conversation": group, "limit": 200, "follow": True}).get("marks", [])
    expect([mark["user"] for mark in marks] == sorted([a, b]), f"who is followed: {marks} (R8-14)")
    first = alice.publish(2, conversation=group, content=b"one".hex())["seq"]
    bob.wait(lambda: first in bob.seqs(group), "the message")
    of_bob = lambda number: next(
        mark.get("delivered", 0)
        for mark in alice.request(number, receipts={"conversation": group, "limit": 200})["marks"]
        if mark["user"] == b
    )
    expect(of_bob(2) < first, "what was sent and is not acked is not delivered (R8-13)")
    told = lambda seq: {"conversation": group, "kind": "DELIVERED", "user": b, "seq": seq}
    bob.stores = True
    bob.ack()
    alice.wait(lambda: told(first) in alice.signals, f"DELIVERED {first} (R8-14)")
    expect(of_bob(3) == first, "and receipts say the same (R8-13)")

    expect("reason" not in bob.publish(1, conversation=group, set_level={"level": "HEADS_ONLY"}), "a level (R6.6-1)")
    expect(listed(bob, 1, group).get("level") == "HEADS_ONLY", "the list tells the level (R6.6-1)")
    second = alice.publish(3, conversation=group, content=b"two".hex())["seq"]
    head = {"conversation": group, "from_seq": second, "to_seq": second, "reason": "WITHHELD"}
    bob.wait(lambda: any(item.get("head") == head for item in bob.items[1]), "WITHHELD (R6.6-2)")
    alice.wait(lambda: told(second) in alice.signals, "what is withheld counts as had (R8-13)")
    expect(alice.request(4, receipts={"conversation": group, "stop": True}) == {}, "followed no more (R8-14)")

    answer = bob.publish(2, set_push={"provider": "pigeon", "target": "x"})
    expect(answer == {"reason": "invalid_argument"}, f"a provider that there is not: {answer} (R17-1)")
    expect("reason" not in bob.publish(3, set_push={"provider": "webhook", "target": "conformance"}), "set (R17-1)")
    own = next(device for device in bob.request(2, devices={})["devices"] if device.get("own"))
    expect(own.get("push") == "webhook", f"the device says by whom it is told: {own} (R17-2)")
    expect("reason" not in bob.publish(4, set_push={}), "told no more (R17-1)")
    alice.leave()
    bob.leave()
    passed("is told what was delivered to whom, sets a level, and says where it is told while it is away")


def check_messages(options):
    """What becomes of messages, and what the list, receipts and the compact view say of it (chapter 5.6, R8-10 to 12)."""
    alice, bob, group = group_of_two(options, "messages")
    a, b = alice.connected["user"], bob.connected["user"]
    bob.publish(1, conversation=group, set_mark={"seq": 2})

    question = alice.publish(2, conversation=group, content=b"who comes?".hex())["seq"]
    beside = {"reply_to": question, "mentions": [b]}
    reply = alice.publish(3, conversation=group, content=b"bob?".hex(), beside=beside)["seq"]
    gone = alice.publish(4, conversation=group, content=b"oops".hex())["seq"]
    mentioned = lambda: any(
        item.get("entry", {}).get("mentioned") == {"conversation": group, "seq": reply} for item in bob.items[0]
    )
    bob.wait(mentioned, "MENTIONED in the inbox (R5.6-3)")
    bob.wait(lambda: gone in bob.seqs(group), "messages of the group")
    one = listed(bob, 1, group)
    expect((one.get("unread"), one.get("mentions")) == (3, 1), f"three unread, one mentions bob: {one} (R7-7, R8-4)")

    answer = bob.publish(2, conversation=group, edit={"seq": reply}, content="00")
    expect(answer == {"reason": "forbidden"}, f"what another one said is not edited: {answer} (R5.6-4)")
    edit = alice.publish(5, conversation=group, edit={"seq": question}, content=b"who comes tonight?".hex())["seq"]
    reaction = bob.publish(3, conversation=group, react={"seq": question, "reaction": "+1"})["seq"]
    again = bob.publish(4, conversation=group, react={"seq": question, "reaction": "+1"})["seq"]
    expect(again == reaction, f"the same reaction writes no entry: {again} (R5.6-7)")
    recall = alice.publish(6, conversation=group, recall={"seq": gone})["seq"]
    answer = bob.publish(5, conversation=group, react={"seq": gone, "reaction": "+1"})
    expect(answer == {"reason": "invalid_argument"}, f"nobody reacts to what is recalled: {answer} (R5.6-10)")
    bob.wait(lambda: recall in bob.seqs(group), "the recall (R5.6-6)")
    one = listed(bob, 2, group)
    expect(one.get("unread") == 2, f"what is recalled is not unread: {one} (R5.6-6)")
    expect("last" not in one, f"the newest message is not to be shown: {one} (R8-4)")

    page = bob.request(3, history={"conversation": group, "from_seq": question, "limit": 50, "compact": True})
    shown = [item["entry"] for item in page["items"] if "entry" in item]
    expect([one["seq"] for one in shown] == [question, reply], f"the compact view: {shown} (R8-10)")
    compacted = shown[0].get("compacted", {})
    reactions = [{"reaction": "+1", "count": 1, "own": True}]
    expect(shown[0]["content"] == b"who comes tonight?".hex(), f"with the newest content: {shown[0]} (R8-10)")
    expect((compacted.get("edit"), compacted.get("reactions")) == (edit, reactions), f"{compacted} (R8-10)")
    expect(shown[1]["beside"] == beside, f"what stands beside a message comes with it: {shown[1]} (R5.6-1)")
    heads = [item["head"] for item in page["items"] if "head" in item]
    expect(heads[0].get("reason") == "RECALLED" and heads[0]["from_seq"] == gone, f"in its place: {heads} (R5.6-6)")
    expect({head["reason"] for head in heads[1:]} == {"FOLDED"}, f"what is said with the message: {heads} (R8-10)")

    bob.publish(6, conversation=group, hide={"seq": reply})
    one = listed(bob, 4, group)
    expect((one.get("unread"), one.get("mentions", 0)) == (1, 0), f"nor is what bob hides: {one} (R5.6-8)")
    bob.publish(7, conversation=group, set_settings={"settings": {"pinned": True, "marked_unread": True}})
    bob.publish(8, conversation=group, set_mark={"seq": recall})
    one = listed(bob, 5, group)
    expect((one.get("unread", 0), one.get("settings")) == (0, {"pinned": True}), f"all is read: {one} (R5.6-9)")
    told = {"conversation": group, "user": b, "seq": recall}
    alice.wait(lambda: any(item.get("mark") == told for item in alice.items[1]), "bob's mark (R6.1-6)")
    marks = alice.request(1, receipts={"conversation": group, "limit": 10}).get("marks", [])
    read = {mark["user"]: mark.get("seq", 0) for mark in marks}
    expect(read == {a: gone, b: recall}, f"who has read what: {marks} (R8-12)")

    bob.publish(9, conversation=group, leave={})
    alice.publish(7, conversation=group, leave={})
    alice.leave()
    bob.leave()
    passed("replies, mentions, edits, reacts, recalls, hides, and lists, marks and counts what is unread")


def came(session, conversation):
    """The contents of the entries of others that came in a conversation, by seq; each once and in order."""
    entries = [item["entry"] for item in session.items[0] if item.get("entry", {}).get("conversation") == conversation]
    seqs = [entry["seq"] for entry in entries]
    expect(seqs == sorted(set(seqs)), f"seqs come once and in order: {seqs} (R6.1-3)")
    return {entry["seq"]: entry.get("content", "") for entry in entries}


def check_strangers(options):
    reason = Session(options, "stranger", token="not.a.token").end()
    expect(reason == "unauthenticated", f"a token that is none: {reason} (R4-3)")
    reason = Session(options, "stranger", {"version": 99}).end()
    expect(reason == "version_unsupported", f"a version to come: {reason} (R4-2)")
    reason = Session(options, "").end()
    expect(reason == "invalid_argument", f"a device without a name: {reason} (R4-2)")
    for data, expected, rule in (
        (b"\x10GET / HTTP/1.1\r\n", "malformed", "R3-6"),
        (b"\x84\x00\x52\x02\x08\x01", "malformed", "R3-2"),
        (b"\x81\x20", "frame_too_large", "R3-4"),
        (frame({"ack": {"express": 1}}), "unexpected_packet", "R4-1"),
    ):
        stranger = Session.__new__(Session)
        stranger.socket, stranger.buffer, stranger.limit, stranger.ended = open_socket(options), b"", 4096, None
        stranger.socket.sendall(data)
        reason = stranger.end()
        expect(reason == expected, f"{data!r} before Connect: {reason}, and not {expected} ({rule})")
    passed("is told why when it says what it must not before it is let in")


def expect(holds, what):
    if not holds:
        raise Deviation(what)


def passed(what):
    print("ok: " + what, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="longwires://HOST:PORT of a broker; without it only the vectors are checked")
    parser.add_argument("--ca", help="the certificate of the broker, or of who signed it (PEM)")
    parser.add_argument("--token", help="a token of any user; LONGWIRE_TOKEN has it otherwise")
    parser.add_argument("--peer-token", help="a token of another user, to check what two users see of each other")
    options = parser.parse_args()
    options.token = options.token or os.environ.get("LONGWIRE_TOKEN")
    if options.url and not options.token:
        parser.error("a broker needs --token")
    try:
        check_vectors()
        if options.url:
            check_broker(options)
    except Deviation as deviation:
        print(f"deviation: {deviation}", file=sys.stderr)
        return 1
    except Refused as refused:
        print(f"deviation: the broker sent what is {refused}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"cannot reach {options.url}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
