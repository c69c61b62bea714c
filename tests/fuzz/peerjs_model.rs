//! A naive model of PeerJS's protocol, written from `src/protocols/README.md`: lists instead of tables.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use noroshi::http::query::Query;
use noroshi::http::token::{Claims, Secrets, TokenError};
use noroshi::json;
use noroshi::protocol::{CloseCause, Conn, Target};

use super::context::{Context, Output, RoomMember, Rules};

pub struct Model {
    context: Context,
    secrets: Option<Secrets>,
    clients: BTreeMap<Conn, Client>,
    /// Holders that are being probed, with their claimants, oldest first.
    probed: BTreeMap<Conn, Vec<Conn>>,
    pairs: Vec<Pair>,
    /// The number of the last message or deadline.
    last_number: u64,
}

#[derive(Clone)]
struct Client {
    key: String,
    id: String,
    proof: Proof,
    is_claimant: bool,
}

#[derive(Clone, PartialEq)]
enum Proof {
    Chosen(String),
    ForId,
    ForAnyId,
}

/// Messages of one client for an absent one.
struct Pair {
    key: String,
    from: String,
    to: String,
    deadline: Duration,
    /// Orders equal deadlines.
    number: u64,
    messages: Vec<Held>,
    is_incomplete: bool,
    /// Whether the sender was told, so that candidates are dropped.
    is_remembered: bool,
}

struct Held {
    number: u64,
    is_awaited: bool,
    text: String,
}

const MISSING: &str = "No id, token, or key supplied to websocket server";
const SENDER_BYTES: usize = 256 * 1024;

impl Model {
    pub fn new(rate: u32, secrets: Option<Secrets>) -> Model {
        Model {
            context: Context::new(rate),
            secrets,
            clients: BTreeMap::new(),
            probed: BTreeMap::new(),
            pairs: Vec::new(),
            last_number: 0,
        }
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn send(&mut self, to: Conn, text: String) {
        self.context.emit(to, Output::Text(text));
    }

    /// Returns the connection that holds an id.
    fn holder(&self, key: &str, id: &str) -> Option<Conn> {
        let mut clients = self.clients.iter();
        let holder = clients.find(|(_, it)| !it.is_claimant && it.key == key && it.id == id);
        holder.map(|(conn, _)| *conn)
    }

    fn expire(&mut self, to: Conn, from: &str, absent: &str) {
        let text = format!(r#"{{"type":"EXPIRE","src":{},"dst":{}}}"#, quoted(absent), quoted(from));
        self.send(to, text);
    }

    // ---- Ids ----

    fn identify(&self, query: &Query) -> Result<Client, Result<TokenError, &'static str>> {
        let value = |name: &str, expected: &'static str| match query.values(name).last() {
            Some(Ok(value)) => Ok(value),
            Some(Err(_)) => Err(Err(expected)),
            None => Ok(String::new()),
        };
        let key = value("key", "key: expected 1 to 256 bytes of UTF-8")?;
        let id = value("id", "id: expected 1 to 128 bytes of UTF-8")?;
        let token = value("token", "token: expected UTF-8")?;
        if key.is_empty() || id.is_empty() {
            return Err(Err(MISSING));
        }
        if token.is_empty() && self.secrets.is_none() {
            return Err(Err(MISSING));
        }
        if key.len() > 256 {
            return Err(Err("key: expected 1 to 256 bytes of UTF-8"));
        }
        if id.len() > 128 {
            return Err(Err("id: expected 1 to 128 bytes of UTF-8"));
        }
        let proof = self.proof(&key, &id, token).map_err(Ok)?;
        Ok(Client { key, id, proof, is_claimant: false })
    }

    fn proof(&self, key: &str, id: &str, token: String) -> Result<Proof, TokenError> {
        let Some(secrets) = &self.secrets else { return Ok(Proof::Chosen(token)) };
        if token.is_empty() {
            return Err(TokenError::Missing);
        }
        let claims = secrets.verify(&token, self.context.now)?;
        if claims.room.is_some_and(|named| *named != *key) {
            return Err(TokenError::Room);
        }
        if claims.room_prefix.is_some_and(|prefix| !key.starts_with(&*prefix)) {
            return Err(TokenError::Room);
        }
        match claims.id {
            None => Ok(Proof::ForAnyId),
            Some(named) if *named == *id => Ok(Proof::ForId),
            Some(_) => Err(TokenError::Id),
        }
    }

    fn admit(&mut self, conn: Conn, client: Client) {
        let holder = self.holder(&client.key, &client.id);
        let Some(holder) = holder else {
            self.clients.insert(conn, client);
            return self.open(conn);
        };
        let proof = client.proof.clone();
        self.clients.insert(conn, Client { is_claimant: true, ..client });
        let held_by = self.clients[&holder].proof.clone();
        let is_same = match proof {
            Proof::Chosen(_) => proof == held_by,
            Proof::ForId => true,
            Proof::ForAnyId => false,
        };
        if is_same {
            for claimant in self.end_probe(holder) {
                self.reject(claimant);
            }
            self.context.close(holder, CloseCause::Replaced);
            let old = self.clients.remove(&holder).expect("the holder is known");
            self.context.emit(holder, Output::Left(old.key, Some(old.id)));
            return self.open(conn);
        }
        let claimants = self.probed.get(&holder).map_or(0, Vec::len);
        if held_by == Proof::ForId || claimants == 256 {
            return self.reject(conn);
        }
        if !self.probed.contains_key(&holder) {
            self.context.probe(holder);
        }
        self.probed.entry(holder).or_default().push(conn);
        self.context.emit(conn, Output::Pause);
    }

    fn open(&mut self, conn: Conn) {
        let client = self.clients.get_mut(&conn).expect("the connection is known");
        client.is_claimant = false;
        let Client { key, id, .. } = client.clone();
        self.context.emit(conn, Output::Registered(key.clone()));
        self.send(conn, r#"{"type":"OPEN"}"#.to_owned());
        // What was held for it.
        let (pairs, others) = self.pairs.drain(..).partition(|pair| pair.key == key && pair.to == id);
        self.pairs = others;
        let mut untold = BTreeSet::new();
        let mut messages = Vec::new();
        for Pair { from, is_incomplete, messages: held, .. } in pairs {
            if is_incomplete {
                untold.insert(from.clone());
            }
            messages.extend(held.into_iter().map(|held| (held.number, from.clone(), held)));
        }
        messages.sort_by_key(|(number, ..)| *number);
        for (_, from, held) in messages {
            if !self.context.forward(conn, vec![held.text]) {
                self.context.count_error("peer_busy");
                if held.is_awaited {
                    untold.insert(from);
                }
            }
        }
        for from in untold {
            if let Some(sender) = self.holder(&key, &from) {
                self.expire(sender, &from, &id);
            }
        }
    }

    fn reject(&mut self, conn: Conn) {
        self.context.count_error("id_taken");
        self.send(conn, r#"{"type":"ID-TAKEN","payload":{"msg":"ID is taken"}}"#.to_owned());
        self.context.close(conn, CloseCause::Finished);
        let client = self.clients.remove(&conn).expect("the connection is known");
        self.context.emit(conn, Output::Left(client.key, None));
    }

    /// Ends the probe of a holder, and returns its claimants, which are read again.
    fn end_probe(&mut self, holder: Conn) -> Vec<Conn> {
        let claimants = self.probed.remove(&holder).unwrap_or_default();
        self.context.end_probe(holder);
        for claimant in &claimants {
            self.context.emit(*claimant, Output::Resume);
        }
        claimants
    }

    fn remove_client(&mut self, conn: Conn) {
        let client = self.clients.remove(&conn).expect("the connection is known");
        if client.is_claimant {
            self.context.emit(conn, Output::Left(client.key, None));
            for claimants in self.probed.values_mut() {
                claimants.retain(|claimant| *claimant != conn);
            }
            return;
        }
        self.context.emit(conn, Output::Left(client.key.clone(), Some(client.id.clone())));
        let claimants = self.end_probe(conn);
        if let Some((first, others)) = claimants.split_first() {
            self.open(*first);
            for other in others {
                self.reject(*other);
            }
            return;
        }
        // Nobody is left to send candidates of an attempt that has expired.
        let is_of_client = |pair: &Pair| pair.key == client.key && pair.from == client.id;
        self.pairs.retain(|pair| !(is_of_client(pair) && pair.is_remembered));
    }

    fn close(&mut self, conn: Conn, why: CloseCause) {
        self.context.close(conn, why);
        self.remove_client(conn);
    }

    // ---- Messages ----

    fn relay(&mut self, conn: Conn, kind: &'static str, to: &str, payload: Option<&str>) {
        let Client { key, id, .. } = self.clients[&conn].clone();
        let is_awaited = kind == "OFFER" || kind == "ANSWER";
        let payload = payload.map_or(String::new(), |payload| format!(r#","payload":{payload}"#));
        let text = format!(r#"{{"type":"{kind}","src":{},"dst":{}{payload}}}"#, quoted(&id), quoted(to));
        if let Some(receiver) = self.holder(&key, to) {
            if !self.context.forward(receiver, vec![text]) {
                self.context.count_error("peer_busy");
                if is_awaited {
                    self.expire(conn, &id, to);
                }
            }
        } else if kind == "LEAVE" {
            // There is nobody to leave.
        } else if to.len() > 128 {
            self.context.count_error("expired");
            if is_awaited {
                self.expire(conn, &id, to);
            }
        } else if !self.hold(&key, &id, to, is_awaited, text) && is_awaited {
            self.expire(conn, &id, to);
        }
    }

    /// Holds a message, or drops it. `false`: nothing is stored, so that the sender must be told now.
    fn hold(&mut self, key: &str, from: &str, to: &str, is_awaited: bool, text: String) -> bool {
        let position = |pairs: &[Pair]| {
            pairs.iter().position(|pair| pair.key == key && pair.from == from && pair.to == to)
        };
        if position(&self.pairs).is_none() {
            let of_sender = self.pairs.iter().filter(|pair| pair.key == key && pair.from == from).count();
            let of_receiver = self.pairs.iter().filter(|pair| pair.key == key && pair.to == to).count();
            if of_sender >= 128 || of_receiver >= 1024 || !self.context.reserve() {
                self.context.count_error("hold_full");
                return false;
            }
            let number = self.number();
            self.pairs.push(Pair {
                key: key.to_owned(),
                from: from.to_owned(),
                to: to.to_owned(),
                deadline: self.context.now + Duration::from_secs(5),
                number,
                messages: Vec::new(),
                is_incomplete: false,
                is_remembered: false,
            });
        }
        let at = position(&self.pairs).expect("the pair is known");
        if self.pairs[at].is_remembered {
            if !is_awaited {
                return true;
            }
            let number = self.number();
            let deadline = self.context.now + Duration::from_secs(5);
            let pair = &mut self.pairs[at];
            (pair.is_remembered, pair.is_incomplete) = (false, false);
            (pair.deadline, pair.number) = (deadline, number);
        }
        let of_sender = self.pairs.iter().filter(|pair| pair.key == key && pair.from == from);
        let of_sender: Vec<&Held> = of_sender.flat_map(|pair| &pair.messages).collect();
        let bytes: usize = of_sender.iter().map(|held| held.text.len()).sum();
        let of_receiver = self.pairs.iter().filter(|pair| pair.key == key && pair.to == to);
        let of_receiver: usize = of_receiver.map(|pair| pair.messages.len()).sum();
        let has_space = of_sender.len() < 512 && of_receiver < 1024 && bytes + text.len() <= SENDER_BYTES;
        if !has_space || !self.context.reserve() {
            self.context.count_error("hold_full");
            self.pairs[at].is_incomplete |= is_awaited;
            return true;
        }
        let number = self.number();
        self.pairs[at].messages.push(Held { number, is_awaited, text });
        true
    }
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string is JSON")
}

impl Rules for Model {
    fn context(&mut self) -> &mut Context {
        &mut self.context
    }

    fn connected(&mut self, conn: Conn, target: &Target, _: Option<&Claims>) {
        let sentence = match self.identify(&target.query) {
            Ok(client) => return self.admit(conn, client),
            Err(Ok(fault)) => {
                self.context.emit(conn, Output::TokenRefused(fault));
                fault.message()
            }
            Err(Err(sentence)) => {
                self.context.count_error("bad_parameters");
                sentence
            }
        };
        self.send(conn, format!(r#"{{"type":"ERROR","payload":{{"msg":"{sentence}"}}}}"#));
        self.context.close(conn, CloseCause::Finished);
        self.context.emit(conn, Output::Left(target.room.clone(), None));
    }

    fn text(&mut self, conn: Conn, text: &str) {
        let mut fields = BTreeMap::new();
        let object = json::parse_object(text, |key, value| _ = fields.insert(key.to_owned(), value));
        let to = match fields.get("dst") {
            None | Some(&"null") => Some(String::new()),
            Some(value) => json::parse_string(value).map(String::from),
        };
        let kind = fields.get("type").and_then(|value| json::parse_string(value));
        let kind = kind.filter(|_| object.is_some());
        let (Some(to), Some(kind)) = (to, kind) else {
            return self.context.count_error("not_understood");
        };
        let kinds = ["OFFER", "ANSWER", "CANDIDATE", "LEAVE", "HEARTBEAT"];
        let Some(kind) = kinds.into_iter().find(|known| *known == kind) else {
            return self.context.count_error("not_understood");
        };
        if to.is_empty() && !["LEAVE", "HEARTBEAT"].contains(&kind) {
            return self.context.count_error("not_understood");
        }
        self.context.count_message(kind);
        match kind {
            "HEARTBEAT" => {}
            "LEAVE" if to.is_empty() => self.close(conn, CloseCause::Finished),
            _ => self.relay(conn, kind, &to, fields.get("payload").copied()),
        }
    }

    fn binary(&mut self, conn: Conn, bytes: &[u8]) {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.text(conn, text),
            Err(_) => self.context.count_error("not_understood"),
        }
    }

    fn dropped(&mut self, _: Conn, _: bool) {
        self.context.count_error("rate_limited");
    }

    fn alive(&mut self, conn: Conn) {
        for claimant in self.end_probe(conn) {
            self.reject(claimant);
        }
    }

    fn silent(&mut self, conn: Conn) {
        if self.probed[&conn].is_empty() {
            self.probed.remove(&conn);
        } else {
            self.close(conn, CloseCause::Replaced);
        }
    }

    fn disconnected(&mut self, conn: Conn) {
        if self.clients.contains_key(&conn) {
            self.remove_client(conn);
        }
    }

    fn timer(&mut self) {
        let now = self.context.now;
        let first = (0..self.pairs.len()).min_by_key(|at| (self.pairs[*at].deadline, self.pairs[*at].number));
        let at = first.expect("one is due");
        if self.pairs[at].is_remembered {
            self.pairs.remove(at);
            return;
        }
        self.context.count_error("expired");
        let Pair { key, from, to, .. } = &self.pairs[at];
        let (from, to) = (from.clone(), to.clone());
        let Some(sender) = self.holder(key, &from) else {
            self.pairs.remove(at);
            return;
        };
        let number = self.number();
        let pair = &mut self.pairs[at];
        pair.messages.clear();
        pair.is_incomplete = false;
        (pair.is_remembered, pair.deadline, pair.number) = (true, now + Duration::from_secs(30), number);
        self.expire(sender, &from, &to);
    }

    fn timer_due(&self) -> Option<Duration> {
        self.pairs.iter().map(|pair| pair.deadline).min()
    }

    fn room_exists(&self, target: &Target) -> bool {
        self.clients.values().any(|client| !client.is_claimant && client.key == target.room)
    }

    fn member(&self, conn: Conn) -> Option<RoomMember> {
        let client = self.clients.get(&conn)?;
        Some(match client.is_claimant {
            true => (client.key.clone(), None, "claimant"),
            false => (client.key.clone(), Some(client.id.clone()), "open"),
        })
    }

    fn counts(&self) -> (usize, usize) {
        let open: Vec<&Client> = self.clients.values().filter(|client| !client.is_claimant).collect();
        let keys: BTreeSet<&str> = open.iter().map(|client| client.key.as_str()).collect();
        (open.len(), keys.len())
    }

    fn stored_bytes(&self) -> usize {
        let texts = self.pairs.iter().flat_map(|pair| &pair.messages).map(|held| held.text.len());
        self.pairs.len() + texts.sum::<usize>()
    }
}
