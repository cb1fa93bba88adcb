//! AWS's partitions: which region is in which, and the names of their hosts.

/// A partition: the starts of its regions' names, its domain, and the domain of its dual-stack registries.
type Partition = (&'static str, &'static str, &'static str);

/// Those that a region's name tells; all other regions are in [`COMMON`].
const PARTITIONS: [Partition; 6] = [
    ("cn-", "amazonaws.com.cn", "on.amazonwebservices.com.cn"),
    ("eusc-", "amazonaws.eu", "on.amazonwebservices.eu"),
    ("us-iso-", "c2s.ic.gov", "on.aws.ic.gov"),
    ("us-isob-", "sc2s.sgov.gov", "on.aws.scloud"),
    ("eu-isoe-", "cloud.adc-e.uk", "on.cloud-aws.adc-e.uk"),
    ("us-isof-", "csp.hci.ic.gov", "on.aws.hci.ic.gov"),
];
/// Also that of the regions `us-gov-...`.
const COMMON: Partition = ("", "amazonaws.com", "on.aws");

fn of_region(region: &str) -> Partition {
    PARTITIONS.into_iter().find(|(start, ..)| region.starts_with(start)).unwrap_or(COMMON)
}

/// The domain of a region's services, such as `amazonaws.com`.
#[must_use]
pub fn domain(region: &str) -> &'static str {
    of_region(region).1
}

/// The region of a private registry of ECR by its host: `<account>.dkr.ecr.<region>.<domain>`, its FIPS form, or a
/// dual-stack name. `None` for any other host.
#[must_use]
pub fn registry_region(host: &str) -> Option<&str> {
    let (account, rest) = host.split_once('.')?;
    if account.len() != 12 || !account.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let after = |starts: [&str; 2]| starts.into_iter().find_map(|start| rest.strip_prefix(start));
    let is_dual = after(["dkr-ecr.", "dkr-ecr-fips."]);
    let (region, domain) = is_dual.or_else(|| after(["dkr.ecr.", "dkr.ecr-fips."]))?.split_once('.')?;
    let (_, plain, dual) = of_region(region);
    let is_region = !region.is_empty() && region.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
    (is_region && domain == if is_dual.is_some() { dual } else { plain }).then_some(region)
}

/// Whether a host is AWS's, of any partition.
#[must_use]
pub fn is_aws(host: &str) -> bool {
    let domains = PARTITIONS.into_iter().chain([COMMON]).flat_map(|(_, plain, dual)| [plain, dual]);
    let is_in = |domain| host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    host == "public.ecr.aws" || domains.into_iter().any(is_in)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_known_by_their_names() {
        for (host, region) in [
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", Some("eu-west-1")),
            ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
            ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", Some("us-gov-west-1")),
            ("123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu", Some("eusc-de-east-1")),
            ("123456789012.dkr.ecr.us-iso-east-1.c2s.ic.gov", Some("us-iso-east-1")),
            ("123456789012.dkr.ecr.us-isob-east-1.sc2s.sgov.gov", Some("us-isob-east-1")),
            ("123456789012.dkr-ecr.eu-west-1.on.aws", Some("eu-west-1")),
            ("123456789012.dkr-ecr-fips.us-east-1.on.aws", Some("us-east-1")),
            ("123456789012.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn", Some("cn-north-1")),
            ("123456789012.dkr.ecr.cn-north-1.amazonaws.com", None),
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.eu", None),
            ("12345678901.dkr.ecr.eu-west-1.amazonaws.com", None),
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example", None),
            ("123456789012.dkr.ecr.evil.example/.amazonaws.com", None),
            ("123456789012.dkr.ecr.a.b.amazonaws.com", None),
            ("123456789012.dkr.ecr..amazonaws.com", None),
            ("public.ecr.aws", None),
            ("registry.example", None),
        ] {
            assert_eq!(registry_region(host), region, "{host}");
            assert!(region.is_none() || is_aws(host), "{host}");
        }
        assert!(is_aws("public.ecr.aws") && is_aws("git-codecommit.eu-west-1.amazonaws.com"));
        assert!(!is_aws("evilamazonaws.com") && !is_aws("registry.example") && !is_aws("stoker"));
    }
}
