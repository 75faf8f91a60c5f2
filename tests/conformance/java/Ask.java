// Asks by the HTTP client of Java's own library, on which Spring AI, LangChain4j and others stand.
// Over plain HTTP it offers an upgrade to HTTP/2 with each request, as it does unless told not to.
//
// java Ask.java MODE URL KEY < BODIES    a body a line, all sent at once
// MODE is `plain`, `stream` or `leave` (after the first event). Each answer is printed as a line:
// its status, a blank, and its body, or its events, in base64.

import java.io.BufferedReader;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.util.Base64;
import java.util.List;
import java.util.concurrent.CompletableFuture;

class Ask {
  public static void main(String[] arguments) throws Exception {
    var client = HttpClient.newHttpClient();
    var input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    List<CompletableFuture<String>> answers =
        input.lines().map(body -> ask(client, arguments, body)).toList();
    for (var answer : answers) System.out.println(answer.get());
    System.exit(0); // the client's threads would live on for a while
  }

  static CompletableFuture<String> ask(HttpClient client, String[] arguments, String body) {
    var request =
        HttpRequest.newBuilder(URI.create(arguments[1]))
            .header("Authorization", "Bearer " + arguments[2])
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
    return client
        .sendAsync(request, BodyHandlers.ofInputStream())
        .thenApplyAsync(answer -> read(answer, arguments[0]));
  }

  static String read(HttpResponse<InputStream> answer, String mode) {
    try (InputStream stream = answer.body()) {
      byte[] said = mode.equals("leave") ? stream.readNBytes(1) : stream.readAllBytes();
      return answer.statusCode() + " " + Base64.getEncoder().encodeToString(said);
    } catch (java.io.IOException broken) {
      throw new java.io.UncheckedIOException(broken);
    }
  }
}
