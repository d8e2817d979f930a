//! Multicast groups that a UDP socket is a member of: ip(7), RFC 3678.
//!
//! getsockopt(2) tells of a group whether the socket is in it, so every group that this machine is in is asked for. On the way back the socket joins
//! again, on the interface of the same name.
//!
//! Refused: a membership that takes or leaves out chosen sources.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use crate::error::{Error, Result};
use crate::files::dump::Description;
use crate::image::pb;
use crate::sys::socket;

const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_MSFILTER: i32 = 48;
/// struct group_filter: interface, group, mode and number of sources, without any.
const FILTER: usize = 144;
const MODE: usize = 136;
const SOURCES: usize = 140;
/// struct group_req: interface and group.
const REQUEST: usize = 136;
const MCAST_EXCLUDE: [u8; 4] = [0; 4];

/// A group on an interface of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    index: u32,
    interface: String,
    address: IpAddr,
}

impl Group {
    fn level(&self) -> i32 {
        if self.address.is_ipv4() { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 }
    }

    /// How the options begin: the interface, and from byte 8 on the group's address.
    fn argument(&self, size: usize) -> Vec<u8> {
        let mut bytes = vec![0u8; size];
        bytes[..4].copy_from_slice(&self.index.to_ne_bytes());
        let family = if self.address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u16;
        bytes[8..10].copy_from_slice(&family.to_ne_bytes());
        match self.address {
            IpAddr::V4(address) => bytes[12..16].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => bytes[16..32].copy_from_slice(&address.octets()),
        }
        bytes
    }

    /// How a socket is a member of it: the answer of MCAST_MSFILTER.
    fn of(&self, fd: BorrowedFd<'_>) -> Option<Vec<u8>> {
        socket::asked_option(fd, self.level(), MCAST_MSFILTER, self.argument(FILTER)).ok()
    }
}

/// The groups of a socket. An IPv6 socket may be in groups of both sorts.
pub fn record(found: &Description<'_>) -> Result<Vec<pb::PtyagentGroup>> {
    let mut groups = Vec::new();
    for group in groups4().into_iter().chain(groups6()) {
        let Some(filter) = group.of(found.copy) else { continue };
        if filter.get(MODE..MODE + 4) != Some(&MCAST_EXCLUDE) || filter.get(SOURCES..SOURCES + 4) != Some(&[0; 4]) {
            let kind = format!("a UDP socket with chosen sources in the multicast group {}", group.address);
            return Err(found.refuse(kind, "end the program that uses it, then dump again"));
        }
        let address = match group.address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        groups.push(pb::PtyagentGroup { interface: Some(group.interface), address: Some(address) });
    }
    Ok(groups)
}

/// Joins the recorded groups.
pub fn restore(fd: BorrowedFd<'_>, own: &pb::PtyagentSocket) -> Result<()> {
    for recorded in &own.groups {
        let (interface, bytes) = (recorded.interface(), recorded.address());
        let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
        let address = v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
        let address = address.map_err(|_| Error::failed("a multicast group without an address"))?;
        let cannot = |reason: String| {
            Error::failed(format!("a socket cannot join the multicast group {address} on {interface}: {reason}"))
        };
        let index = std::fs::read_to_string(format!("/sys/class/net/{interface}/ifindex"));
        let index = index.ok().and_then(|text| text.trim().parse().ok());
        let index = index.ok_or_else(|| cannot("there is no such interface".into()))?;
        let group = Group { index, interface: interface.to_owned(), address };
        socket::set_option(fd, group.level(), MCAST_JOIN_GROUP, &group.argument(REQUEST))
            .map_err(|errno| cannot(errno.desc().into()))?;
    }
    Ok(())
}

/// Of every line of /proc/net/igmp: a line for an interface, then one for each of its groups, a hexadecimal word in memory order.
fn groups4() -> Vec<Group> {
    let text = std::fs::read_to_string("/proc/net/igmp").unwrap_or_default();
    let (mut index, mut interface, mut found) = (0, String::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if !line.starts_with(char::is_whitespace) {
            index = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
            interface = words.next().unwrap_or_default().to_owned();
        } else if let Some(group) = words.next().and_then(|word| u32::from_str_radix(word, 16).ok()) {
            let address = Ipv4Addr::from(group.to_ne_bytes()).into();
            found.push(Group { index, interface: interface.clone(), address });
        }
    }
    found
}

/// Of every line of /proc/net/igmp6: index and name of an interface, and a group.
fn groups6() -> Vec<Group> {
    let text = std::fs::read_to_string("/proc/net/igmp6").unwrap_or_default();
    let of = |line: &str| {
        let mut words = line.split_whitespace();
        let (index, interface) = (words.next()?.parse().ok()?, words.next()?.to_owned());
        let address = Ipv6Addr::from(u128::from_str_radix(words.next()?, 16).ok()?).into();
        Some(Group { index, interface, address })
    };
    text.lines().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_member_of_a_group_is_found() {
        let member = UdpSocket::bind("0.0.0.0:0").unwrap();
        let group = Ipv4Addr::new(239, 1, 2, 3);
        let is_member = |one: &UdpSocket| {
            groups4().into_iter().any(|found| found.address == group && found.of(one.as_fd()).is_some())
        };
        if member.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST).is_err() {
            return;
        }
        assert!(is_member(&member));
        assert!(!is_member(&UdpSocket::bind("0.0.0.0:0").unwrap()));
    }
}
