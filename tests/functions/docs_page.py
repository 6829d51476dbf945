"""Opens the documentation page in a browser and prints as JSON what the page shows, requests and logs.

Takes one argument, a JSON object: `url`, the page's URL; `browser`, the path of Chromium; `hosts`, Chromium's rules for
resolving names; `open_all`, whether to expand every operation; `tries`, the operations to execute with "Try it out":
`method`, `path`, `parameters` to fill in, and `body`.
"""

import json
import sys

from playwright.sync_api import sync_playwright

TIMEOUT_MS = 30_000


def operation(page, method, path):
    return page.locator(f".opblock-{method.lower()}").filter(
        has=page.locator(f'.opblock-summary-path[data-path="{path}"]')
    )


def try_out(page, wanted):
    block = operation(page, wanted["method"], wanted["path"])
    block.locator(".opblock-summary-control").click()
    block.get_by_role("button", name="Try it out").click()
    for name, value in wanted.get("parameters", {}).items():
        block.locator(f'tr[data-param-name="{name}"] input').fill(value)
    if "body" in wanted:
        block.locator(".body-param textarea").fill(wanted["body"])
    block.get_by_role("button", name="Execute").click()
    response = block.locator(".responses-table.live-responses-table")
    response.wait_for()
    return {
        "request_url": block.locator(".request-url pre").inner_text(),
        "status": response.locator("tbody .response-col_status").first.inner_text().split()[0],
        "body": response.locator("tbody .response-col_description pre").first.inner_text(),
    }


def look(page, wanted):
    page.goto(wanted["url"])
    page.locator(".opblock").first.wait_for()
    title = page.locator(".info .title").inner_text()
    blocks = page.locator(".opblock")
    operations = [
        {
            "method": block.locator(".opblock-summary-method").inner_text(),
            "path": block.locator(".opblock-summary-path").get_attribute("data-path"),
        }
        for block in blocks.all()
    ]
    # Parameters, bodies, responses and examples are rendered only when an operation is expanded.
    described = 0
    for block in blocks.all() if wanted["open_all"] else []:
        block.locator(".opblock-summary-control").click()
        block.locator(".responses-wrapper").wait_for()
        described += block.locator(".responses-wrapper .response").count()
        block.locator(".opblock-summary-control").click()
        block.locator(".responses-wrapper").wait_for(state="detached")
    tried = [try_out(page, one) for one in wanted["tries"]]
    return {
        "title": title,
        "operations": operations,
        "described": described,
        "tried": tried,
        "resolver_errors": page.locator(".errors-wrapper").count(),
    }


def main():
    wanted = json.loads(sys.argv[1])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=wanted["browser"],
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                f"--host-resolver-rules={wanted['hosts']}",
            ],
        )
        page = browser.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        console, requests, failed = [], [], []
        page.on("console", lambda message: console.append({"type": message.type, "text": message.text}))
        page.on("pageerror", lambda error: console.append({"type": "error", "text": str(error)}))
        page.on("request", lambda request: requests.append(request.url))
        page.on("requestfailed", lambda request: failed.append({"url": request.url, "failure": request.failure}))
        seen = look(page, wanted)
        browser.close()
    print(json.dumps({**seen, "console": console, "requests": requests, "failed": failed}))


if __name__ == "__main__":
    main()
