import io.spiffe.workloadapi.DefaultWorkloadApiClient;
import io.spiffe.workloadapi.Watcher;
import io.spiffe.workloadapi.X509Context;
import java.util.concurrent.CountDownLatch;

/** A workload that gets its identity through java-spiffe, whose gRPC runs on netty's unix sockets. */
public final class Peer {
    private Peer() {}

    /** Arguments: socket, audience, how many updates of the X.509 stream to wait for. */
    public static void main(String[] args) throws Exception {
        var options = DefaultWorkloadApiClient.ClientOptions.builder().spiffeSocketPath("unix:" + args[0]).build();
        try (var client = DefaultWorkloadApiClient.newClient(options)) {
            System.out.println("x509 " + client.fetchX509Context().getDefaultSvid().getSpiffeId());
            var token = client.fetchJwtSvid(args[1]);
            System.out.println("jwt " + token.getSpiffeId());
            System.out.println("validated " + client.validateJwtSvid(token.getToken(), args[1]).getSpiffeId());
            var updates = new CountDownLatch(Integer.parseInt(args[2]));
            client.watchX509Context(new Watcher<X509Context>() {
                @Override
                public void onUpdate(X509Context update) {
                    System.out.println("update " + update.getDefaultSvid().getSpiffeId() + " "
                            + update.getDefaultSvid().getLeaf().getSerialNumber());
                    updates.countDown();
                }

                @Override
                public void onError(Throwable error) {
                    System.out.println("watch error " + error);
                }
            });
            updates.await();
        }
        System.exit(0);
    }
}
