//! Encryption on the wire. Who is who, and who only says so, is in `attacks`.

use anyhow::{Result, ensure};
use weft_e2e::machine::Capture;
use weft_e2e::{App, Client, Injection, scenario};

fn outsider(ns: &weft_e2e::Namespace) -> Result<Client<'_>> {
    let mut pod = weft_e2e::app::pod("outsider", weft_e2e::app::TEST_IMAGE, &["/testapp", "pause"]);
    pod["metadata"]["labels"]["weft.dev/inject"] = "disabled".into();
    Client::deploy_pod(ns, "outsider", pod)
}

#[test]
fn no_plaintext_crosses_between_pods_and_a_capture_would_have_seen_it() {
    scenario("capture", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let (client, outsider) = (Client::deploy(ns, "client")?, outsider(ns)?);
        let server = ns.pod("app=server")?;

        let capture = Capture::start(&server)?;
        outsider.get_with("http://server/", &["-H", "x-secret: plainly-visible-secret"])?.expect(200)?;
        let frames = capture.finish()?;
        ensure!(
            frames.containing("plainly-visible-secret") > 0,
            "the control failed: {} frames, plaintext unseen",
            frames.count()
        );

        let capture = Capture::start(&server)?;
        for reply in client.get_many(
            "http://server/well-hidden-secret",
            20,
            2,
            &["-H", "x-secret: well-hidden-secret", "--new-connections"],
        )? {
            ensure!(
                reply.expect(200)?.seen_header("x-secret") == Some("well-hidden-secret"),
                "the header did not arrive"
            );
        }
        client.run(&["/testapp", "tcp", "server:7000", "well-hidden-secret"])?;
        let frames = capture.finish()?;
        ensure!(frames.bytes() > 4000 && frames.count() > 20, "only {} frames were seen", frames.count());
        ensure!(
            frames.containing("well-hidden-secret") == 0,
            "plaintext in {} frames",
            frames.containing("well-hidden-secret")
        );
        Ok(())
    });
}
