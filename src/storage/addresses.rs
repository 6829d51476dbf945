//! The addresses that may be fetched from: public ones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(first: u16, second: u16, sixth: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(first, second, 0, 0, 0, sixth, 0, 0), prefix)
}

/// IPv4 networks that are not public
/// (<https://www.iana.org/assignments/iana-ipv4-special-registry>, multicast:
/// <https://www.iana.org/assignments/ipv4-address-space>).
const NOT_PUBLIC_V4: [Ipv4Net; 14] = [
    v4(0, 0, 0, 0, 8),       // "This network", RFC 791
    v4(10, 0, 0, 0, 8),      // private use, RFC 1918
    v4(100, 64, 0, 0, 10),   // shared address space, RFC 6598
    v4(127, 0, 0, 0, 8),     // loopback, RFC 1122
    v4(169, 254, 0, 0, 16),  // link-local, where clouds serve instance metadata, RFC 3927
    v4(172, 16, 0, 0, 12),   // private use, RFC 1918
    v4(192, 0, 0, 0, 24),    // IETF protocol assignments, RFC 6890
    v4(192, 0, 2, 0, 24),    // documentation (TEST-NET-1), RFC 5737
    v4(192, 168, 0, 0, 16),  // private use, RFC 1918
    v4(198, 18, 0, 0, 15),   // benchmarking, RFC 2544
    v4(198, 51, 100, 0, 24), // documentation (TEST-NET-2), RFC 5737
    v4(203, 0, 113, 0, 24),  // documentation (TEST-NET-3), RFC 5737
    v4(224, 0, 0, 0, 4),     // multicast, RFC 5771
    v4(240, 0, 0, 0, 4),     // reserved, RFC 1112, and limited broadcast, RFC 8190
];

/// All IPv6 addresses that are allocated for public use
/// (<https://www.iana.org/assignments/ipv6-address-space>).
const GLOBAL_UNICAST: Ipv6Net = v6(0x2000, 0, 0, 3);

/// The networks in [`GLOBAL_UNICAST`] that are not public
/// (<https://www.iana.org/assignments/iana-ipv6-special-registry>).
const NOT_PUBLIC_V6: [Ipv6Net; 3] = [
    v6(0x2001, 0, 0, 23),     // IETF protocol assignments with Teredo and benchmarking, RFC 2928
    v6(0x2001, 0xdb8, 0, 32), // documentation, RFC 3849
    v6(0x3fff, 0, 0, 20),     // documentation, RFC 9637
];

/// IPv6 networks whose addresses reach the IPv4 address that follows the prefix
/// (<https://www.iana.org/assignments/iana-ipv6-special-registry>).
const EMBEDDING_IPV4: [Ipv6Net; 4] = [
    v6(0, 0, 0, 96),         // IPv4-compatible, RFC 4291
    v6(0, 0, 0xffff, 96),    // IPv4-mapped, RFC 4291
    v6(0x64, 0xff9b, 0, 96), // NAT64, RFC 6052
    v6(0x2002, 0, 0, 16),    // 6to4, RFC 3056
];

/// Returns whether an address is a public one. An address that embeds an IPv4 address is public if that is.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !NOT_PUBLIC_V4.iter().any(|network| network.contains(&address)),
        IpAddr::V6(address) => match EMBEDDING_IPV4.iter().find(|network| network.contains(&address)) {
            Some(network) => is_public(following(network, address).into()),
            None => {
                GLOBAL_UNICAST.contains(&address) && !NOT_PUBLIC_V6.iter().any(|network| network.contains(&address))
            }
        },
    }
}

/// The 32 bits of an address that follow a network's prefix.
fn following(network: &Ipv6Net, address: Ipv6Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(((address.to_bits() << network.prefix_len()) >> 96) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_public() {
        for public in [
            "1.1.1.1",
            "8.8.8.8",
            "100.128.0.1",
            "172.32.0.1",
            "198.20.0.1",
            "2606:4700::1111",
            "2001:4860:4860::8888",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2002:808:808::1",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for not in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "239.1.2.3",
            "240.0.0.1",
            "192.0.0.192",
            "192.0.2.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "::1",
            "::",
            "fe80::1",
            "fd00:ec2::254",
            "fc00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001:0:1::1",
            "2002:a9fe:a9fe::1",
            "3fff::1",
            "4000::1",
        ] {
            assert!(!is_public(not.parse().unwrap()), "{not}");
        }
    }
}
