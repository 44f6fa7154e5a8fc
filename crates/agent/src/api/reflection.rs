//! gRPC reflection, versions v1 and v1alpha, over the descriptors that the wire crate carries.
//!
//! Own code instead of tonic-reflection: that crate checks in descriptors of its own, whose file names differ
//! from those that grpc-go shows, and builds its tables once for each version.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};
use tonic::{Code, Request, Response, Status, Streaming};

/// The files and what they declare.
struct Descriptors {
    /// By file name: the encoded file and what it imports.
    files: HashMap<String, (Bytes, Vec<String>)>,
    /// From the full name of a message, enum, service or method to its file.
    symbols: HashMap<String, String>,
}

impl Descriptors {
    /// Those of an encoded set, which is generated and tested, so it can be read.
    fn of(set: &[u8]) -> Self {
        let set = FileDescriptorSet::decode(set).unwrap_or_default();
        let mut descriptors = Self { files: HashMap::new(), symbols: HashMap::new() };
        for file in set.file {
            descriptors.add(&file);
        }
        descriptors
    }

    fn add(&mut self, file: &FileDescriptorProto) {
        let name = file.name().to_owned();
        let package = file.package();
        let mut declare = |symbol: String| drop(self.symbols.insert(symbol, name.clone()));
        for service in &file.service {
            let full = join(package, service.name());
            for method in &service.method {
                declare(join(&full, method.name()));
            }
            declare(full);
        }
        for item in &file.enum_type {
            declare(join(package, item.name()));
        }
        for message in &file.message_type {
            declare_message(package, message, &mut declare);
        }
        self.files.insert(name, (file.encode_to_vec().into(), file.dependency.clone()));
    }

    /// A file and all that it imports, itself first, as grpc-go answers.
    fn with_imports(&self, name: &str) -> Option<Vec<Bytes>> {
        let mut names = vec![name.to_owned()];
        let mut found = Vec::new();
        let mut next = 0;
        while let Some(name) = names.get(next).cloned() {
            let (file, imports) = self.files.get(&name)?;
            found.push(file.clone());
            for import in imports {
                if !names.contains(import) {
                    names.push(import.clone());
                }
            }
            next += 1;
        }
        Some(found)
    }
}

fn declare_message(scope: &str, message: &DescriptorProto, declare: &mut impl FnMut(String)) {
    let full = join(scope, message.name());
    for item in &message.enum_type {
        declare(join(&full, item.name()));
    }
    for nested in &message.nested_type {
        declare_message(&full, nested, declare);
    }
    declare(full);
}

fn join(scope: &str, name: &str) -> String {
    if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") }
}

/// What is asked, in either version.
enum Question {
    File(String),
    Symbol(String),
    Extension,
    Extensions(String),
    Services,
    Nothing,
}

/// What is answered, in either version.
enum Answer {
    Files(Vec<Bytes>),
    Services(Vec<String>),
    Extensions(String),
    Error(Code, String),
}

/// The service. Open streams share its tables.
pub(super) struct Reflection(Arc<Tables>);

struct Tables {
    set: &'static [u8],
    /// Read when somebody asks: few agents are ever asked, and an idle one would keep them all along.
    descriptors: OnceLock<Descriptors>,
    services: Vec<String>,
}

impl Reflection {
    /// Of an encoded set of files and the services of the socket.
    pub(super) fn new(set: &'static [u8], mut services: Vec<&str>) -> Self {
        services.sort_unstable();
        let services = services.into_iter().map(ToOwned::to_owned).collect();
        Self(Arc::new(Tables { set, descriptors: OnceLock::new(), services }))
    }
}

impl Tables {
    fn descriptors(&self) -> &Descriptors {
        self.descriptors.get_or_init(|| Descriptors::of(self.set))
    }

    fn answer(&self, question: Question) -> Answer {
        let files = |name: &str| {
            let found = self.descriptors().with_imports(name);
            found.map_or_else(|| Answer::Error(Code::NotFound, "proto: not found".to_owned()), Answer::Files)
        };
        match question {
            Question::File(name) => files(&name),
            Question::Symbol(symbol) => {
                files(self.descriptors().symbols.get(&symbol).map_or("", String::as_str))
            }
            // None of our messages can be extended (proto3).
            Question::Extension => Answer::Error(Code::NotFound, "proto: not found".to_owned()),
            Question::Extensions(message) if self.descriptors().symbols.contains_key(&message) => {
                Answer::Extensions(message)
            }
            Question::Extensions(_) => Answer::Error(Code::NotFound, "proto: not found".to_owned()),
            Question::Services => Answer::Services(self.services.clone()),
            Question::Nothing => Answer::Error(Code::InvalidArgument, "invalid MessageRequest".to_owned()),
        }
    }
}

/// Implements one version of the service; their messages differ in name only.
macro_rules! version {
    ($version:ident) => {
        const _: () = {
            use spire_wire::reflection::$version::server_reflection_request::MessageRequest;
            use spire_wire::reflection::$version::server_reflection_response::MessageResponse;
            use spire_wire::reflection::$version::{
                ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse,
                ServerReflectionRequest, ServerReflectionResponse, ServiceResponse, server_reflection_server,
            };

            fn question(request: Option<MessageRequest>) -> Question {
                match request {
                    Some(MessageRequest::FileByFilename(name)) => Question::File(name),
                    Some(MessageRequest::FileContainingSymbol(symbol)) => Question::Symbol(symbol),
                    Some(MessageRequest::FileContainingExtension(_)) => Question::Extension,
                    Some(MessageRequest::AllExtensionNumbersOfType(message)) => Question::Extensions(message),
                    Some(MessageRequest::ListServices(_)) => Question::Services,
                    None => Question::Nothing,
                }
            }

            fn response(answer: Answer) -> MessageResponse {
                match answer {
                    Answer::Files(file_descriptor_proto) => {
                        MessageResponse::FileDescriptorResponse(FileDescriptorResponse {
                            file_descriptor_proto,
                        })
                    }
                    Answer::Services(names) => {
                        let service = names.into_iter().map(|name| ServiceResponse { name }).collect();
                        MessageResponse::ListServicesResponse(ListServiceResponse { service })
                    }
                    Answer::Extensions(base_type_name) => {
                        MessageResponse::AllExtensionNumbersResponse(ExtensionNumberResponse {
                            base_type_name,
                            extension_number: Vec::new(),
                        })
                    }
                    Answer::Error(code, error_message) => MessageResponse::ErrorResponse(ErrorResponse {
                        error_code: code.into(),
                        error_message,
                    }),
                }
            }

            #[async_trait]
            impl server_reflection_server::ServerReflection for Reflection {
                type ServerReflectionInfoStream =
                    Pin<Box<dyn Stream<Item = Result<ServerReflectionResponse, Status>> + Send>>;

                async fn server_reflection_info(
                    &self,
                    request: Request<Streaming<ServerReflectionRequest>>,
                ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
                    let this = Arc::clone(&self.0);
                    let answers = request.into_inner().map(move |request| {
                        let request = request?;
                        let answer = this.answer(question(request.message_request.clone()));
                        Ok(ServerReflectionResponse {
                            valid_host: request.host.clone(),
                            original_request: Some(request),
                            message_response: Some(response(answer)),
                        })
                    });
                    Ok(Response::new(Box::pin(answers)))
                }
            }
        };
    };
}

version!(v1);
version!(v1alpha);

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(question: Question) -> Answer {
        Reflection::new(spire_wire::FILE_DESCRIPTOR_SET, vec!["b", "a"]).0.answer(question)
    }

    #[test]
    fn every_service_of_the_socket_can_be_described() {
        for symbol in [
            "SpiffeWorkloadAPI",
            "SpiffeWorkloadAPI.FetchX509SVID",
            "X509SVIDResponse",
            "grpc.health.v1.Health",
            "grpc.health.v1.HealthCheckResponse.ServingStatus",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            "envoy.service.secret.v3.SecretDiscoveryService.StreamSecrets",
            "envoy.extensions.transport_sockets.tls.v3.Secret",
            "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
        ] {
            let Answer::Files(files) = ask(Question::Symbol(symbol.to_owned())) else {
                panic!("{symbol} is not described");
            };
            let decoded: Vec<_> =
                files.iter().map(|f| FileDescriptorProto::decode(&f[..]).unwrap()).collect();
            let names: Vec<&str> = decoded.iter().map(FileDescriptorProto::name).collect();
            for import in decoded.iter().flat_map(|f| &f.dependency) {
                assert!(names.contains(&import.as_str()), "{symbol}: {import} is missing");
            }
            let Answer::Files(again) = ask(Question::File(names[0].to_owned())) else {
                panic!("{}", names[0])
            };
            assert_eq!(again, files);
        }
    }

    #[test]
    fn what_is_unknown_is_not_found() {
        for question in [
            Question::File("x.proto".to_owned()),
            Question::Symbol("x".to_owned()),
            Question::Extension,
            Question::Extensions("x".to_owned()),
        ] {
            assert!(matches!(ask(question), Answer::Error(Code::NotFound, _)));
        }
        assert!(matches!(ask(Question::Nothing), Answer::Error(Code::InvalidArgument, _)));
        let Answer::Services(names) = ask(Question::Services) else { panic!("no services") };
        assert_eq!(names, ["a", "b"]);
    }
}
