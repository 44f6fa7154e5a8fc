//! The schema on MySQL and MariaDB, as gorm makes it (pkg/server/datastore/sqlstore/models.go): texts of at most 255
//! characters in the collation that is the default of `utf8`, times of whole seconds.

use super::{Schema, Step};

pub(super) const SCHEMA: Schema = Schema {
    create: CREATE,
    steps: STEPS,
    has_table: "SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = ?1",
    has_column: "SELECT 1 FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = ?1 AND \
                 COLUMN_NAME = ?2",
    // Statements that change a schema are no part of a transaction here; who changes it has a lock until its connection
    // ends.
    begin: "DO GET_LOCK(CONCAT('spire-schema-', DATABASE()), 60)",
};

/// The table of versions comes last: a server that finds it takes the others for made.
const CREATE: &[&str] = &[
    r#"CREATE TABLE `federated_registration_entries` (`bundle_id` int unsigned,`registered_entry_id` int unsigned, PRIMARY KEY (`bundle_id`,`registered_entry_id`)) ENGINE=InnoDB  ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8"#,
    r#"CREATE TABLE `bundles` (`id` int unsigned AUTO_INCREMENT,`created_at` DATETIME NULL,`updated_at` DATETIME NULL,`trust_domain` varchar(255) NOT NULL,`data` longblob , PRIMARY KEY (`id`)) ENGINE=InnoDB  ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8"#,
    r#"CREATE UNIQUE INDEX uix_bundles_trust_domain ON `bundles`(trust_domain)"#,
    r#"CREATE TABLE `attested_node_entries` (`id` int unsigned AUTO_INCREMENT,`created_at` DATETIME NULL,`updated_at` DATETIME NULL,`spiffe_id` varchar(255),`data_type` varchar(255),`serial_number` varchar(255),`expires_at` DATETIME NULL,`new_serial_number` varchar(255),`new_expires_at` DATETIME NULL,`can_reattest` boolean,`agent_version` varchar(255) , PRIMARY KEY (`id`)) ENGINE=InnoDB  ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8"#,
    r#"CREATE INDEX idx_attested_node_entries_expires_at ON `attested_node_entries`(expires_at)"#,
    r#"CREATE UNIQUE INDEX uix_attested_node_entries_spiffe_id ON `attested_node_entries`(spiffe_id)"#,
    r#"CREATE TABLE `attested_node_entries_events` (`id` int unsigned AUTO_INCREMENT,`created_at` DATETIME NULL,`updated_at` DATETIME NULL,`spiffe_id` varchar(255) , PRIMARY KEY (`id`)) ENGINE=InnoDB  ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8"#,
    r#"CREATE TABLE `node_resolver_map_entries` (`id` int unsigned AUTO_INCREMENT,`created_at` DATETIME NULL,`updated_at` DATETIME NULL,`spiffe_id` varchar(255),`type` varchar(255),`value` varchar(255) , PRIMARY KEY (`id`)) ENGINE=InnoDB  ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8"#,
    r#"CREATE UNIQUE INDEX idx_node_resolver_map ON `node_resolver_map_entries`(spiffe_id, `type`, `value`)"#,
    r#"CREATE TABLE `registered_entries` (`id` int unsigned AUTO_INCREMENT,`created_at` DATETIME NULL,`updated_at` DATETIME NULL,`entry_id` varchar(255),`spiffe_id` varchar(255),`parent_id` varchar(255),`ttl` int,`admin` boolean,`downstream` boolean,`expiry` bigint,`revision_number` bigint,`store_svid` boolean,`hint` varchar(255),`jwt_svid_ttl` int,`additional_attributes` longblob , PRIMARY KEY (`id`)) ENGINE=InnoDB  ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8"#,
    r#"CREATE INDEX idx_registered_entries_hint ON `registered_entries`(`hint`)"#,
    r#"CREATE INDEX idx_registered_entries_spiffe_id ON `registered_entries`(spiffe_id)"#,
    r#"CREATE INDEX idx_registered_entries_parent_id ON `registered_entries`(parent_id)"#,
    r#"CREATE INDEX idx_registered_entries_expiry ON `registered_entries`(`expiry`)"#,
    r#"CREATE UNIQUE INDEX uix_registered_entries_entry_id ON `registered_entries`(entry_id)"#,
    r#"CREATE TABLE `registered_entries_events` (`id` int unsigned AUTO_INCREMENT,`created_at` DATETIME NULL,`updated_at` DATETIME NULL,`entry_id` varchar(255) , PRIMARY KEY (`id`)) ENGINE=InnoDB  ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8"#,
    r#"CREATE TABLE `join_tokens` (`id` int unsigned AUTO_INCREMENT,`created_at` DATETIME NULL,`updated_at` DATETIME NULL,`token` varchar(255),`expiry` bigint , PRIMARY KEY (`id`)) ENGINE=InnoDB  ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8"#,
    r#"CREATE UNIQUE INDEX uix_join_tokens_token ON `join_tokens`(`token`)"#,
    r#"CREATE TABLE `selectors` (`id` int unsigned AUTO_INCREMENT,`created_at` DATETIME NULL,`updated_at` DATETIME NULL,`registered_entry_id` int unsigned,`type` varchar(255),`value` varchar(255) , PRIMARY KEY (`id`)) ENGINE=InnoDB  ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8"#,
    r#"CREATE INDEX idx_selectors_type_value ON `selectors`(`type`, `value`)"#,
    r#"CREATE UNIQUE INDEX idx_selector_entry ON `selectors`(registered_entry_id, `type`, `value`)"#,
    r#"CREATE TABLE `dns_names` (`id` int unsigned AUTO_INCREMENT,`created_at` DATETIME NULL,`updated_at` DATETIME NULL,`registered_entry_id` int unsigned,`value` varchar(255) , PRIMARY KEY (`id`)) ENGINE=InnoDB  ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8"#,
    r#"CREATE UNIQUE INDEX idx_dns_entry ON `dns_names`(registered_entry_id, `value`)"#,
    r#"CREATE TABLE `federated_trust_domains` (`id` int unsigned AUTO_INCREMENT,`created_at` DATETIME NULL,`updated_at` DATETIME NULL,`trust_domain` varchar(255) NOT NULL,`bundle_endpoint_url` varchar(255),`bundle_endpoint_profile` varchar(255),`endpoint_spiffe_id` varchar(255),`implicit` boolean , PRIMARY KEY (`id`)) ENGINE=InnoDB  ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8"#,
    r#"CREATE UNIQUE INDEX uix_federated_trust_domains_trust_domain ON `federated_trust_domains`(trust_domain)"#,
    r#"CREATE TABLE `ca_journals` (`id` int unsigned AUTO_INCREMENT,`created_at` DATETIME NULL,`updated_at` DATETIME NULL,`data` longblob,`active_x509_authority_id` varchar(255),`active_jwt_authority_id` varchar(255) , PRIMARY KEY (`id`)) ENGINE=InnoDB  ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8"#,
    r#"CREATE INDEX idx_ca_journals_active_x509_authority_id ON `ca_journals`(active_x509_authority_id)"#,
    r#"CREATE INDEX idx_ca_journals_active_jwt_authority_id ON `ca_journals`(active_jwt_authority_id)"#,
    r#"CREATE INDEX idx_federated_registration_entries_registered_entry_id ON `federated_registration_entries`(registered_entry_id)"#,
    r#"CREATE TABLE `migrations` (`id` int unsigned AUTO_INCREMENT,`created_at` DATETIME NULL,`updated_at` DATETIME NULL,`version` int,`code_version` varchar(255) , PRIMARY KEY (`id`)) ENGINE=InnoDB  ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8"#,
];

const STEPS: &[Step] = &[
    Step {
        from: 23,
        table: "attested_node_entries",
        column: "agent_version",
        statement: "ALTER TABLE `attested_node_entries` ADD `agent_version` varchar(255)",
    },
    Step {
        from: 24,
        table: "registered_entries",
        column: "additional_attributes",
        statement: "ALTER TABLE `registered_entries` ADD `additional_attributes` longblob",
    },
];
